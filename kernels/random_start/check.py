"""Argument checks of `random_start`; each error names the argument, its limits and its value."""

import torch
from torch import Tensor

from .._check import (
    check_box,
    check_choice,
    check_device,
    check_per_sample,
    check_pixels,
    check_tensor,
)

SIDES = ("two-sided", "one-sided")


def check_start(
    x: Tensor,
    indices: Tensor,
    key: Tensor,
    eps: float | Tensor,
    sides: str,
    lo: float,
    hi: float,
) -> None:
    """Check all arguments except ``impl``."""
    check_pixels(x, "x")
    for name, tensor, shape in (("indices", indices, x.shape[:1]), ("key", key, (2,))):
        check_tensor(tensor, name)
        if tensor.shape != shape:
            raise ValueError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")
        if tensor.dtype != torch.int64:
            raise TypeError(f"{name} must be int64, got {tensor.dtype}; call .long()")
        check_device(tensor, name, x, "x")
    # uniform noise needs a finite radius
    check_per_sample(eps, "eps", x, "x", low=0.0)
    check_choice(sides, "sides", SIDES)
    check_box(lo, hi)
