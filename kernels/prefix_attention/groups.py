"""Classes of one suffix length side by side: what plain code computes at once."""

from dataclasses import dataclass
from itertools import groupby, pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """Some classes of one length: their queries and their tokens, counted in the groups' order."""

    classes: int
    length: int
    queries: slice
    tokens: slice

    @property
    def rows(self) -> int:
        """Queries of each class."""
        return (self.queries.stop - self.queries.start) // self.classes


@dataclass(frozen=True)
class Groups:
    """All classes, in groups.

    Attributes:
        groups: in order.
        queries, tokens: which packed query or token stands at each place of the groups' order;
            None where that is the packed order itself.
    """

    groups: list[Group]
    queries: Tensor | None
    tokens: Tensor | None


def group(cu_seqlens: Tensor, n_tokens: int, last_only: bool) -> Groups:
    """Classes by length; reads ``cu_seqlens``, which waits where it is on a GPU.

    Raises:
        ValueError: it does not rise from 0 to ``n_tokens``.
    """
    ends = cu_seqlens.tolist()
    lengths = [b - a for a, b in pairwise(ends)]
    if ends[0] != 0 or ends[-1] != n_tokens or any(n < 1 for n in lengths):
        shown = ends if len(ends) <= 8 else f"{ends[:3]} ... {ends[-3:]}"
        raise ValueError(
            f"cu_seqlens must rise strictly from 0 to k's {n_tokens} tokens, got {shown}: "
            "it is the cumulative sum of the classes' lengths, each at least 1, behind a 0"
        )
    runs = [(length, len(list(run))) for length, run in groupby(lengths)]
    if len({length for length, _ in runs}) == len(runs):
        return Groups(_slices(runs, last_only), None, None)
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    runs = [(length, len(list(run))) for length, run in groupby(lengths[c] for c in order)]
    tokens = torch.tensor([t for c in order for t in range(ends[c], ends[c + 1])])
    queries = torch.tensor(order) if last_only else tokens
    device = cu_seqlens.device
    return Groups(_slices(runs, last_only), queries.to(device), tokens.to(device))


def _slices(runs: list[tuple[int, int]], last_only: bool) -> list[Group]:
    """Each group behind the other; ``runs`` are lengths and how many classes have them."""
    out, query, token = [], 0, 0
    for length, classes in runs:
        queries = slice(query, query + classes * (1 if last_only else length))
        tokens = slice(token, token + classes * length)
        query, token = queries.stop, tokens.stop
        out.append(Group(classes, length, queries, tokens))
    return out
