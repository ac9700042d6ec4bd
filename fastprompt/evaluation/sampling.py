"""Which images are judged, and which are looked at."""

from collections.abc import Sequence

import torch

from .._utils.checks import check_count


def evenly(n: int, total: int) -> list[int]:
    """At most n places out of so many, as far apart as they go."""
    n = min(n, total)
    return [round(i * (total - 1) / max(1, n - 1)) for i in range(n)]


def in_turn(*groups: tuple[Sequence[int], int]) -> list[int]:
    """Places out of several groups, evenly drawn; each with how many there are to be after it."""
    taken: set[int] = set()
    for places, upto in groups:
        left = [place for place in places if place not in taken]
        taken |= {left[i] for i in evenly(upto - len(taken), len(left))}
    return sorted(taken)


def draw_rows(n: int, limit: int | None, seed: int) -> list[int]:
    """Which of n images are judged: all, or so many drawn by a seed."""
    if limit is None or check_count(limit, "limit") >= n:
        return list(range(n))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return sorted(order[:limit].tolist())
