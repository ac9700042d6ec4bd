"""Groups of classes with equal suffix length, which the plain implementation computes together."""

from dataclasses import dataclass
from itertools import groupby, pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """Classes of equal length, and the slices of their queries and tokens in the groups' order."""

    classes: int
    length: int
    queries: slice
    tokens: slice

    @property
    def rows(self) -> int:
        """Number of queries per class."""
        return (self.queries.stop - self.queries.start) // self.classes


@dataclass(frozen=True)
class Groups:
    """All classes, in groups.

    Attributes:
        groups: the groups in order.
        queries, tokens: packed index of each query or token in the groups' order; None if the
            groups' order is the packed order.
    """

    groups: list[Group]
    queries: Tensor | None
    tokens: Tensor | None


def group(cu_seqlens: Tensor, n_tokens: int, last_only: bool) -> Groups:
    """Group classes by length; reads ``cu_seqlens`` on the host, which synchronizes with a GPU.

    Raises:
        ValueError: ``cu_seqlens`` does not increase strictly from 0 to ``n_tokens``.
    """
    ends = cu_seqlens.tolist()
    lengths = [b - a for a, b in pairwise(ends)]
    if ends[0] != 0 or ends[-1] != n_tokens or any(n < 1 for n in lengths):
        shown = ends if len(ends) <= 8 else f"{ends[:3]} ... {ends[-3:]}"
        raise ValueError(
            f"cu_seqlens must increase strictly from 0 to k's {n_tokens} tokens, got {shown}; "
            "pass a 0 followed by the cumulative sum of the class lengths, each at least 1"
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
    """Return consecutive groups; ``runs`` are pairs of a length and a number of classes."""
    out, query, token = [], 0, 0
    for length, classes in runs:
        queries = slice(query, query + classes * (1 if last_only else length))
        tokens = slice(token, token + classes * length)
        query, token = queries.stop, tokens.stop
        out.append(Group(classes, length, queries, tokens))
    return out
