"""In which order of memory a sample's entries are read, and its gradients written."""

import torch
from torch import Tensor


def order_of(a: Tensor) -> list[int]:
    """The dimensions of ``[R, ...]``, the first in its place, the others by falling stride."""
    return [0, *sorted(range(1, a.ndim), key=lambda d: -a.stride()[d])]


def gradient_like(a: Tensor) -> Tensor:
    """Memory for a gradient in ``a``: its shape and order, no gaps, one sample after the other."""
    order = order_of(a)
    inverse = [order.index(d) for d in range(a.ndim)]
    shape = [a.shape[d] for d in order]
    return torch.empty(shape, dtype=a.dtype, device=a.device).permute(inverse)
