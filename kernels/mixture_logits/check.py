"""Argument checks of the mixture; each error names the argument, its limits and its value."""

import torch
from torch import Tensor

from .._check import (
    check_choice,
    check_device,
    check_dtype,
    check_floating,
    check_number,
    check_tensor,
)

MAX_PROMPTS, MAX_WIDTH = 64, 1280
_MIXES = ("normalized", "raw")
_ANCHOR = "text_features"


def check_text(text_features: Tensor, mix: str) -> None:
    """Check ``text_features``, ``[K, C, D]`` within the limits, and ``mix``."""
    check_choice(mix, "mix", _MIXES)
    check_tensor(text_features, _ANCHOR, "stack the prompts first")
    check_floating(text_features, _ANCHOR)
    shape = list(text_features.shape)
    if text_features.ndim != 3:
        raise ValueError(f"text_features must be [K, C, D], got {shape}; stack the prompts first")
    if not all(shape):
        raise ValueError(f"text_features must have K, C and D of at least 1, got {shape}")
    if shape[0] > MAX_PROMPTS:
        raise ValueError(f"text_features must have at most {MAX_PROMPTS} prompts, got {shape}")
    if shape[2] > MAX_WIDTH:
        raise ValueError(f"text_features must have a width D of at most {MAX_WIDTH}, got {shape}")


def check_mixture(
    image_features: Tensor,
    text_features: Tensor,
    router_logits: Tensor,
    logit_scale: Tensor | float,
    temperature: float,
) -> None:
    """Check the other arguments against ``text_features``, which `check_text` has checked."""
    n_prompts, _, width = text_features.shape
    check_tensor(image_features, "image_features")
    check_tensor(router_logits, "router_logits")
    if image_features.ndim != 2 or image_features.shape[1] != width:
        raise ValueError(
            f"image_features must be [B, {width}] to match text_features, "
            f"got {list(image_features.shape)}"
        )
    check_dtype(image_features, "image_features", text_features, _ANCHOR)
    n_images = image_features.shape[0]
    if router_logits.ndim != 2 or router_logits.shape != (n_images, n_prompts):
        raise ValueError(
            f"router_logits must be [{n_images}, {n_prompts}], one per image and prompt, "
            f"got {list(router_logits.shape)}"
        )
    check_floating(router_logits, "router_logits")
    if router_logits.dtype == torch.float64 and text_features.dtype != torch.float64:
        raise TypeError(
            f"router_logits may be float64 only with float64 features, got features in "
            f"{text_features.dtype}; cast router_logits to float32"
        )
    check_device(image_features, "image_features", text_features, _ANCHOR)
    check_device(router_logits, "router_logits", text_features, _ANCHOR)
    if isinstance(logit_scale, Tensor):
        check_floating(logit_scale, "logit_scale")
        if logit_scale.ndim:
            raise ValueError(
                f"logit_scale must be a number or a 0-dimensional tensor, "
                f"got shape {list(logit_scale.shape)}; squeeze it"
            )
        check_device(logit_scale, "logit_scale", text_features, _ANCHOR)
    else:
        check_number(logit_scale, "logit_scale")
    # reading a tensor's value would also synchronize with the GPU
    remedy = "it would get no gradient, divide router_logits by it instead"
    check_number(temperature, "temperature", above=0.0, remedy=remedy)


def check_gram(
    gram: Tensor, inv_norm: Tensor, given: str, text_features: Tensor, mix: str, dtype: torch.dtype
) -> None:
    """Check that a precomputed Gram matrix matches the text features and ``mix``."""
    n_prompts, n_classes, _ = text_features.shape
    if given != mix:
        raise ValueError(f"gram was made with mix={given!r}, got mix={mix!r}; recompute it")
    wanted = {"gram": (n_prompts, n_prompts, n_classes), "inv_norm": (n_prompts, n_classes)}
    for (name, shape), tensor in zip(wanted.items(), (gram, inv_norm), strict=True):
        check_tensor(tensor, f"gram.{name}")
        if tensor.shape != shape or tensor.dtype != dtype:
            raise ValueError(
                f"gram.{name} must be {dtype} {list(shape)}, got {tensor.dtype} "
                f"{list(tensor.shape)}; compute it with mixture_gram(text_features)"
            )
        check_device(tensor, f"gram.{name}", text_features, _ANCHOR)
