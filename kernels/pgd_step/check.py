"""Argument checks of the steps; each error names the argument, its limits and its value."""

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
    """Check shapes, dtypes and devices; only ``grad`` may differ from ``x_adv`` in dtype."""
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
    """Check step size, radius and box; an infinite ``eps`` means no ball."""
    # alpha must be finite: an infinite step times a sign of 0 is NaN
    check_per_sample(alpha, "alpha", x_adv, "x_adv", low=0.0)
    check_per_sample(eps, "eps", x_adv, "x_adv", low=0.0, finite=False)
    check_box(lo, hi)


def check_counts(x_adv: Tensor, counts: Tensor | None) -> None:
    """Check for a contiguous int64 tensor ``[B, 2]``."""
    if counts is None:
        return
    check_tensor(counts, "counts")
    if counts.shape != (x_adv.shape[0], 2) or counts.dtype != torch.int64:
        raise ValueError(
            f"counts must be int64 [{x_adv.shape[0]}, 2], got {counts.dtype} {list(counts.shape)}"
        )
    if not counts.is_contiguous():
        raise ValueError(
            "counts must be contiguous, since it is modified in place; call .contiguous()"
        )
    check_device(counts, "counts", x_adv, "x_adv")


def split(value: PerImage, x_adv: Tensor) -> tuple[float, Tensor | None]:
    """Return ``(number, None)``, or ``(0.0, tensor)`` in the images' dtype for per-image values."""
    if isinstance(value, Tensor):
        return 0.0, value.detach().to(x_adv.dtype).contiguous()
    return float(value), None
