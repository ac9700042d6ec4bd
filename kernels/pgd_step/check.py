"""What the steps refuse: every message names the argument, what it got and what it takes."""

from typing import TypeAlias

import torch
from torch import Tensor

from .._check import (
    check_box,
    check_device,
    check_dtype,
    check_floating,
    check_per_sample,
    check_pixels,
    check_shape,
    check_tensor,
)

PerImage: TypeAlias = float | Tensor


def check_images(x_adv: Tensor, **others: Tensor) -> None:
    """Shapes, dtypes and devices; all but ``grad`` have ``x_adv``'s dtype."""
    check_pixels(x_adv, "x_adv")
    for name, tensor in others.items():
        check_tensor(tensor, name)
        if name == "grad":
            check_floating(tensor, name)
        else:
            check_dtype(tensor, name, x_adv, "x_adv")
        check_shape(tensor, name, x_adv, "x_adv")
        check_device(tensor, name, x_adv, "x_adv")


def check_radius(x_adv: Tensor, alpha: PerImage, eps: PerImage, lo: float, hi: float) -> None:
    """Step size, radius and box; without a ball, ``eps`` is infinite."""
    # an infinite step times a sign of 0 is NaN
    check_per_sample(alpha, "alpha", x_adv, "x_adv", low=0.0)
    check_per_sample(eps, "eps", x_adv, "x_adv", low=0.0, finite=False)
    check_box(lo, hi)


def check_counts(x_adv: Tensor, counts: Tensor | None) -> None:
    """Int64 ``[B, 2]``, contiguous."""
    if counts is None:
        return
    check_tensor(counts, "counts")
    if counts.shape != (x_adv.shape[0], 2) or counts.dtype != torch.int64:
        raise ValueError(
            f"counts must be int64 [{x_adv.shape[0]}, 2], got {counts.dtype} {list(counts.shape)}"
        )
    if not counts.is_contiguous():
        raise ValueError("counts must be contiguous: it is written in place")
    check_device(counts, "counts", x_adv, "x_adv")


def split(value: PerImage, x_adv: Tensor) -> tuple[float, Tensor | None]:
    """A number for all images, or a tensor of one for each, in the images' dtype."""
    if isinstance(value, Tensor):
        return 0.0, value.detach().to(x_adv.dtype).contiguous()
    return float(value), None
