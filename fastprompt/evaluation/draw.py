"""Which images are judged, and which are looked at."""

import torch

from .._checks import check_count


def evenly(n: int, total: int) -> list[int]:
    """At most n places out of so many, as far apart as they go."""
    return sorted({round(i * (total - 1) / max(1, n - 1)) for i in range(min(n, total))})


def draw_rows(n: int, limit: int | None, seed: int) -> list[int]:
    """Which of n images are judged: all, or so many drawn by a seed."""
    if limit is None or check_count(limit, "limit") >= n:
        return list(range(n))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return sorted(order[:limit].tolist())
