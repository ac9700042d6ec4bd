"""Hardware limits: the rate of a plain matrix product and the bandwidth of a plain copy.

Both are timed in the same rounds as the operations that they are compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .dry_run import DRY_RUN
from .sizes import DEVICE, ON_GPU

# in bytes; less may stay in a cache, and call overhead dominates its time
CACHED = 64 << 20


@dataclass(frozen=True)
class Limit:
    """A hardware limit.

    Attributes:
        name: ``"matmul"`` or ``"copy"``.
        amount: FLOPs or bytes of one `run`.
        run: performs only this work.
        dtype: of the operations that are compared with it.
        moved: bytes that the compared operation reads and writes, for ``"copy"``.
    """

    name: str
    amount: int
    run: Callable[[], object]
    dtype: torch.dtype
    moved: int = 0

    def work(self, flops: int) -> int | None:
        """Return the operation's FLOPs or bytes under this limit; None if it does not apply."""
        if self.name == "matmul":
            return flops
        return self.moved if self.moved >= CACHED else None


def multiplying(dtype: torch.dtype) -> Limit:
    """Create the limit of a square matrix product."""
    n = 8192 if ON_GPU else 128 if DRY_RUN else 1536
    a, b = (torch.randn(n, n, device=DEVICE, dtype=dtype) for _ in range(2))
    return Limit("matmul", 2 * n**3, lambda: a @ b, dtype)


def copying(dtype: torch.dtype, moved: int) -> Limit:
    """Create the limit of a float32 copy, read and written, that is larger than the caches."""
    n = 2**28 if ON_GPU else 2**25
    source = torch.rand(n, device=DEVICE)
    target = torch.empty_like(source)
    return Limit(
        "copy", 2 * source.numel() * source.itemsize, lambda: target.copy_(source), dtype, moved
    )
