"""Argument checks of `consistency_loss`; each error names the argument and its value."""

import torch
from torch import Tensor

from .._check import check_choice as check_choice
from .._check import check_device, check_floating, check_per_sample, check_shape, check_tensor

DIRECTIONS = ("adv||target", "target||adv")
_ANCHOR = "adv_logits"


def check_logits(adv_logits: Tensor, **others: Tensor) -> None:
    """Check for floating ``[B, C]`` tensors of one shape on one device; the dtypes may differ."""
    check_tensor(adv_logits, _ANCHOR)
    if adv_logits.ndim != 2 or not adv_logits.shape[1]:
        raise ValueError(f"adv_logits must be [B, C] with C >= 1, got {list(adv_logits.shape)}")
    check_floating(adv_logits, _ANCHOR)
    for name, logits in others.items():
        check_tensor(logits, name)
        check_floating(logits, name)
        check_shape(logits, name, adv_logits, _ANCHOR)
        check_device(logits, name, adv_logits, _ANCHOR)


def check_labels(adv_logits: Tensor, labels: Tensor) -> None:
    """Check for int64 ``[B]``; the values are checked where they are used."""
    check_tensor(labels, "labels")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64 class indices, got {labels.dtype}; call .long()")
    if labels.shape != adv_logits.shape[:1]:
        raise ValueError(
            f"labels must have shape [{adv_logits.shape[0]}], got {list(labels.shape)}"
        )
    check_device(labels, "labels", adv_logits, _ANCHOR)


def check_weight(
    value: float | Tensor, name: str, adv_logits: Tensor, most: float | None = None
) -> None:
    """Check for a finite number from 0 to ``most``, or a tensor with one value per sample."""
    check_per_sample(value, name, adv_logits, _ANCHOR, low=0.0, high=most)
