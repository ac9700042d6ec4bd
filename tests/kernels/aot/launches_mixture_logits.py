"""Launches of the mixture's kernels at the sizes of tuning steps: few classes to 21,000."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastprompt.kernels.mixture_logits import launch
from fastprompt.kernels.mixture_logits.arguments import Mixture, MixtureBackward, Prompts

# products and single reads of small tensors: no kernel only streams memory
ELEMENTWISE: set[str] = set()
# a few bytes at some targets: where no size is a multiple of 16, and in one of the real sizes
MAY_SPILL = {"_text_gradient_kernel", "_image_gradient_kernel"}
# images, classes, prompts, width
_SIZES = {
    "b256-c1000-k8-d512": (256, 1000, 8, 512),
    "b32-c1000-k16-d768": (32, 1000, 16, 768),
    "b64-c21000-k64-d1280": (64, 21000, 64, 1280),
}
_TRAPS = {
    # a 1 is a constant to the compiler, and odd numbers leave nothing aligned
    "b1": (1, 1000, 8, 512),
    "c1": (256, 1, 8, 512),
    "k1": (256, 1000, 1, 512),
    "d1": (256, 1000, 8, 1),
    "ones": (1, 1, 1, 1),
    "odd": (63, 997, 7, 333),
}


def _room(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _inputs(size: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    n_images, n_classes, n_prompts, width = (_SIZES | _TRAPS)[size]
    return (
        _room(n_images, width, dtype=dtype),
        _room(n_prompts, n_classes, width, dtype=dtype),
        _room(n_images, n_prompts, dtype=dtype),
        _room(),
        _room(n_prompts, n_prompts, n_classes),
        _room(n_prompts, n_classes),
    )


def _forward(size: str, dtype: torch.dtype) -> None:
    inputs = _inputs(size, dtype)
    launch.launch_mixture_gram(Prompts(inputs[1], True))
    launch.launch_mixture_logits(Mixture(*inputs, 1.0))


def _backward(
    size: str, dtype: torch.dtype, *, image: bool = True, text: bool = True, scale: bool = True
) -> None:
    n_images, n_classes, n_prompts, _ = (_SIZES | _TRAPS)[size]
    each = _room(n_images, n_classes)
    weights = _room(n_images, n_prompts)
    gradients = each, weights if text else None
    settings = 1.0, True, image, text, True, scale
    saved = *_inputs(size, dtype), weights, each, each
    launch.launch_mixture_logits_backward(MixtureBackward(*gradients, *saved, *settings))


def cases(dtype: torch.dtype) -> dict[str, Callable[[], None]]:
    """By name; each starts one or several kernels. The traps are the same in each dtype."""
    found: dict[str, Callable[[], None]] = {}
    for size in [*_SIZES, *(_TRAPS if dtype == torch.bfloat16 else ())]:
        found[f"mixture-{size}"] = lambda size=size: _forward(size, dtype)
        found[f"mixture-backward-{size}"] = lambda size=size: _backward(size, dtype)
    size = next(iter(_SIZES))
    found[f"mixture-attack-{size}"] = lambda: _backward(size, dtype, text=False, scale=False)
    return found
