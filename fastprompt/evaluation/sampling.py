"""Choose the images that are evaluated and checked."""

from collections.abc import Sequence

import torch

from .._utils.checks import check_count


def evenly(n: int, total: int) -> list[int]:
    """Return at most n evenly spaced indices below ``total``."""
    n = min(n, total)
    return [round(i * (total - 1) / max(1, n - 1)) for i in range(n)]


def in_turn(*groups: tuple[Sequence[int], int]) -> list[int]:
    """For each ``(places, upto)``, add evenly spaced places until ``upto`` are chosen in all."""
    taken: set[int] = set()
    for places, upto in groups:
        left = [place for place in places if place not in taken]
        taken |= {left[i] for i in evenly(upto - len(taken), len(left))}
    return sorted(taken)


def draw_rows(n: int, limit: int | None, seed: int) -> list[int]:
    """Return the indices of all n images, or of ``limit`` images drawn by ``seed``."""
    if limit is None or check_count(limit, "limit") >= n:
        return list(range(n))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return sorted(order[:limit].tolist())
