"""What `consistency_loss` refuses: every message names the argument and what it got."""

import torch
from torch import Tensor

DIRECTIONS = ("adv||target", "target||adv")


def check_logits(adv_logits: Tensor, **others: Tensor) -> None:
    """``[B, C]`` of one shape, on one device, each of any floating dtype."""
    if adv_logits.ndim != 2 or not adv_logits.shape[1]:
        raise ValueError(f"adv_logits must be [B, C] with C >= 1, got {list(adv_logits.shape)}")
    for name, logits in {"adv_logits": adv_logits, **others}.items():
        if not logits.is_floating_point():
            raise TypeError(f"{name} must be of a floating dtype, got {logits.dtype}")
        if logits.shape != adv_logits.shape:
            raise ValueError(
                f"{name} must have adv_logits' shape {list(adv_logits.shape)}, "
                f"got {list(logits.shape)}"
            )
        _check_device(name, logits, adv_logits)


def check_labels(adv_logits: Tensor, labels: Tensor) -> None:
    """Int64 ``[B]``; the values are looked at where they are read."""
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64 class indices, got {labels.dtype}: call .long()")
    if labels.shape != adv_logits.shape[:1]:
        raise ValueError(f"labels must be [{adv_logits.shape[0]}], got {list(labels.shape)}")
    _check_device("labels", labels, adv_logits)


def check_weight(
    name: str, value: float | Tensor, adv_logits: Tensor, most: float = float("inf")
) -> None:
    """A number from 0 to ``most``, or one for each sample."""
    if not isinstance(value, Tensor):
        if not 0 <= value <= most:
            limits = "not be negative" if most == float("inf") else f"be between 0 and {most:g}"
            raise ValueError(f"{name} must {limits}, got {value}")
        return
    if value.shape != adv_logits.shape[:1]:
        wanted = f"a number or [{adv_logits.shape[0]}]"
        raise ValueError(f"{name} must be {wanted}, got {list(value.shape)}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be of a floating dtype, got {value.dtype}")
    _check_device(name, value, adv_logits)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        named = " or ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be {named}, got {value!r}")


def _check_device(name: str, tensor: Tensor, adv_logits: Tensor) -> None:
    if tensor.device != adv_logits.device:
        raise ValueError(
            f"{name} must be on adv_logits' device {adv_logits.device}, got {tensor.device}: "
            "move it there"
        )
