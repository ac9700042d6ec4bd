"""What the machine can do at most: a bare matrix product's rate, a bare copy's bandwidth.

Both are timed in the same rounds as what they are compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .sizes import DEVICE, ON_GPU


@dataclass(frozen=True)
class Limit:
    """Attributes:

    name: ``"matmul"`` or ``"copy"``.
    amount: FLOPs or bytes of one `run`.
    run: does nothing but them.
    moved: bytes of the operation under the limit, for ``"copy"``.
    """

    name: str
    amount: int
    run: Callable[[], object]
    moved: int = 0

    def work(self, flops: int) -> int:
        """What an operation of so many FLOPs does of the limited thing."""
        return self.moved if self.name == "copy" else flops


def multiplying() -> Limit:
    """A square product: in float32 on the CPU, in bfloat16 on a GPU, as the fast engine's are."""
    n, dtype = (8192, torch.bfloat16) if ON_GPU else (1536, torch.float32)
    a, b = (torch.randn(n, n, device=DEVICE, dtype=dtype) for _ in range(2))
    return Limit("matmul", 2 * n**3, lambda: a @ b)


def copying(moved: int) -> Limit:
    """A copy of float32, read and written, larger than the caches."""
    n = 2**28 if ON_GPU else 2**25
    source = torch.rand(n, device=DEVICE)
    target = torch.empty_like(source)
    return Limit("copy", 2 * source.numel() * source.itemsize, lambda: target.copy_(source), moved)
