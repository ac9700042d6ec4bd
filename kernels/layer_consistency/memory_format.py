"""Memory order in which the kernels read a sample's entries and write its gradients."""

import torch
from torch import Tensor


def order_of(a: Tensor) -> list[int]:
    """Return the dimensions of ``[R, ...]``: the first, then the others by decreasing stride."""
    return [0, *sorted(range(1, a.ndim), key=lambda d: -a.stride()[d])]


def gradient_like(a: Tensor) -> Tensor:
    """Allocate a dense gradient of ``a`` with its shape and memory order, samples outermost."""
    order = order_of(a)
    inverse = [order.index(d) for d in range(a.ndim)]
    shape = [a.shape[d] for d in order]
    return torch.empty(shape, dtype=a.dtype, device=a.device).permute(inverse)
