"""What the steps refuse: every message names the argument, what it got and what it takes."""

from typing import TypeAlias

import torch
from torch import Tensor

PerImage: TypeAlias = float | Tensor


def check_images(x_adv: Tensor, **others: Tensor) -> None:
    """Shapes, dtypes and devices; all but ``grad`` have ``x_adv``'s dtype."""
    if x_adv.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x_adv must be float32, as less leaves the eps-ball; got {x_adv.dtype}")
    if x_adv.ndim < 1:
        raise ValueError("x_adv must be [B, ...], got a tensor without dimensions")
    for name, tensor in others.items():
        if name == "grad":
            if not tensor.is_floating_point():
                raise TypeError(f"grad must be of a floating dtype, got {tensor.dtype}")
        elif tensor.dtype != x_adv.dtype:
            raise TypeError(f"{name} must have x_adv's dtype {x_adv.dtype}, got {tensor.dtype}")
        if tensor.shape != x_adv.shape:
            raise ValueError(
                f"{name} must have x_adv's shape {list(x_adv.shape)}, got {list(tensor.shape)}"
            )
        _check_device(name, tensor, x_adv)


def _check_device(name: str, tensor: Tensor, x_adv: Tensor) -> None:
    if tensor.device != x_adv.device:
        raise ValueError(
            f"{name} must be on x_adv's device {x_adv.device}, got {tensor.device}: move it there"
        )


def check_radius(x_adv: Tensor, alpha: PerImage, eps: PerImage, lo: float, hi: float) -> None:
    """Step size, radius and box."""
    for name, value in (("alpha", alpha), ("eps", eps)):
        if not isinstance(value, Tensor):
            if not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value}")
            continue
        if value.shape != x_adv.shape[:1]:
            raise ValueError(f"{name} must be a number or [{len(x_adv)}], got {list(value.shape)}")
        if not value.is_floating_point():
            raise TypeError(f"{name} must be of a floating dtype, got {value.dtype}")
        _check_device(name, value, x_adv)
    if lo > hi:
        raise ValueError(f"lo must not be above hi, got {lo} and {hi}")


def check_counts(x_adv: Tensor, counts: Tensor | None) -> None:
    """Int64 ``[B, 2]``, contiguous."""
    if counts is None:
        return
    if counts.shape != (len(x_adv), 2) or counts.dtype != torch.int64:
        raise ValueError(
            f"counts must be int64 [{len(x_adv)}, 2], got {counts.dtype} {list(counts.shape)}"
        )
    if not counts.is_contiguous():
        raise ValueError("counts must be contiguous: it is written in place")
    _check_device("counts", counts, x_adv)


def check_copy(
    x_adv: Tensor, normalised: Tensor | None, mean: Tensor | None, std: Tensor | None
) -> None:
    """The normalised copy with its statistics, or none of the three."""
    given = [
        name
        for name, t in (("normalised", normalised), ("mean", mean), ("std", std))
        if t is not None
    ]
    if not given:
        return
    if normalised is None or mean is None or std is None:
        raise ValueError(f"normalised, mean and std go together, got only {' and '.join(given)}")
    if x_adv.ndim < 2:
        raise ValueError(f"normalised needs images [B, C, ...], got {list(x_adv.shape)}")
    if normalised.shape != x_adv.shape or not normalised.is_floating_point():
        raise ValueError(
            f"normalised must be floating and have x_adv's shape {list(x_adv.shape)}, "
            f"got {normalised.dtype} {list(normalised.shape)}"
        )
    _check_device("normalised", normalised, x_adv)
    for name, tensor in (("mean", mean), ("std", std)):
        if tensor.shape != x_adv.shape[1:2] or tensor.dtype != x_adv.dtype:
            raise ValueError(
                f"{name} must be {x_adv.dtype} [{x_adv.shape[1]}], "
                f"got {tensor.dtype} {list(tensor.shape)}"
            )
        _check_device(name, tensor, x_adv)


def split(value: PerImage) -> tuple[float, Tensor | None]:
    """A number for all images, or a tensor of one for each."""
    if isinstance(value, Tensor):
        return 0.0, value.detach().contiguous()
    return float(value), None
