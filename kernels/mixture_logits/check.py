"""What the mixture refuses: every message names the argument, what it got and what it takes."""

import torch
from torch import Tensor

MAX_PROMPTS, MAX_WIDTH = 64, 1280
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_text(text_features: Tensor, mix: str) -> None:
    """``[K, C, D]`` within the limits, and how to mix."""
    if mix not in ("normalised", "raw"):
        raise ValueError(f"mix must be 'normalised' or 'raw', got {mix!r}")
    _check_floating("text_features", text_features)
    shape = list(text_features.shape)
    if text_features.ndim != 3:
        raise ValueError(f"text_features must be [K, C, D], got {shape}: stack the prompts first")
    if not all(shape):
        raise ValueError(f"text_features must hold a prompt, a class and a width, got {shape}")
    if shape[0] > MAX_PROMPTS:
        raise ValueError(f"text_features may have {MAX_PROMPTS} prompts at most, got {shape}")
    if shape[2] > MAX_WIDTH:
        raise ValueError(f"text_features may be {MAX_WIDTH} wide at most, got {shape}")


def check_mixture(
    image_features: Tensor,
    text_features: Tensor,
    router_logits: Tensor,
    logit_scale: Tensor | float,
    temperature: float,
) -> None:
    """What goes with ``text_features``, which were checked before."""
    n_prompts, _, width = text_features.shape
    if image_features.ndim != 2 or image_features.shape[1] != width:
        raise ValueError(
            f"image_features must be [B, {width}], as wide as text_features; "
            f"got {list(image_features.shape)}"
        )
    if image_features.dtype != text_features.dtype:
        raise TypeError(
            f"image_features must have text_features' dtype {text_features.dtype}, "
            f"got {image_features.dtype}: cast one of them"
        )
    n_images = image_features.shape[0]
    if router_logits.ndim != 2 or router_logits.shape != (n_images, n_prompts):
        raise ValueError(
            f"router_logits must be [{n_images}, {n_prompts}], one for each image and prompt; "
            f"got {list(router_logits.shape)}"
        )
    _check_floating("router_logits", router_logits)
    if router_logits.dtype == torch.float64 and text_features.dtype != torch.float64:
        raise TypeError(
            f"router_logits may be float64 only with float64 features, got features in "
            f"{text_features.dtype}: cast router_logits to float32"
        )
    _check_device("image_features", image_features, text_features)
    _check_device("router_logits", router_logits, text_features)
    if isinstance(logit_scale, Tensor):
        _check_floating("logit_scale", logit_scale)
        if logit_scale.ndim:
            raise ValueError(
                f"logit_scale must be a number or a tensor without dimensions, "
                f"got {list(logit_scale.shape)}: squeeze it"
            )
        _check_device("logit_scale", logit_scale, text_features)
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")


def check_gram(
    gram: Tensor, inv_norm: Tensor, given: str, text_features: Tensor, mix: str, dtype: torch.dtype
) -> None:
    """A prepared Gram matrix is that of such text features."""
    n_prompts, n_classes, _ = text_features.shape
    if given != mix:
        raise ValueError(f"gram was made with mix={given!r}, got mix={mix!r}: make it with that")
    wanted = {"gram": (n_prompts, n_prompts, n_classes), "inv_norm": (n_prompts, n_classes)}
    for (name, shape), tensor in zip(wanted.items(), (gram, inv_norm), strict=True):
        if tensor.shape != shape or tensor.dtype != dtype:
            raise ValueError(
                f"gram.{name} must be {dtype} {list(shape)}, got {tensor.dtype} "
                f"{list(tensor.shape)}: make it with mixture_gram(text_features)"
            )
        _check_device(f"gram.{name}", tensor, text_features)


def _check_floating(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in _FLOATS:
        raise TypeError(
            f"{name} must be float32, float16, bfloat16 or float64, got {tensor.dtype}: cast it"
        )


def _check_device(name: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.device != like.device:
        raise ValueError(
            f"{name} must be on text_features' device {like.device}, got {tensor.device}: "
            "move it there"
        )
