"""What the machine can do at most: a bare matrix product's rate, a bare copy's bandwidth.

Both are timed in the same rounds as what they are compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .sizes import DEVICE, ON_GPU

# bytes: less may stay in a cache, and takes as long as calling anything does
CACHED = 64 << 20


@dataclass(frozen=True)
class Limit:
    """Attributes:

    name: ``"matmul"`` or ``"copy"``.
    amount: FLOPs or bytes of one `run`.
    run: does nothing but them.
    dtype: of what is compared with it.
    moved: bytes of the operation under the limit, for ``"copy"``.
    """

    name: str
    amount: int
    run: Callable[[], object]
    dtype: torch.dtype
    moved: int = 0

    def work(self, flops: int) -> int | None:
        """What an operation of so many FLOPs does of the limited thing; None: it says nothing."""
        if self.name == "matmul":
            return flops
        return self.moved if self.moved >= CACHED else None


def multiplying(dtype: torch.dtype) -> Limit:
    """A square product."""
    n = 8192 if ON_GPU else 1536
    a, b = (torch.randn(n, n, device=DEVICE, dtype=dtype) for _ in range(2))
    return Limit("matmul", 2 * n**3, lambda: a @ b, dtype)


def copying(dtype: torch.dtype, moved: int) -> Limit:
    """A copy of float32, read and written, larger than the caches."""
    n = 2**28 if ON_GPU else 2**25
    source = torch.rand(n, device=DEVICE)
    target = torch.empty_like(source)
    return Limit(
        "copy", 2 * source.numel() * source.itemsize, lambda: target.copy_(source), dtype, moved
    )
