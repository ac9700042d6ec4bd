"""Pixel gradients and projected sign steps along them."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..kernels import pgd_step, pgd_step_


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put a module in eval mode; on exit, restore the mode of each submodule."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    training = [m for m in modules if m.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def module_device(model: Any, otherwise: torch.device) -> torch.device:
    """Return the device of a module's parameters or buffers, ``otherwise`` if it has none."""
    if isinstance(model, nn.Module):
        tensor = next(iter([*model.parameters(), *model.buffers()]), None)
        if tensor is not None:
            return tensor.device
    return otherwise


Gradient = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]

# when an attack clamps the pixels to [0, 1]: at the random start and in each step; in each step
# only; not between the steps but in the model's input; or once after the last step
Clamp = Literal["always", "steps", "inputs", "end"]


def pixel_gradient(loss_of: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Compute the pixel gradient of ``loss_of(images)``; zeros if the loss has no graph to them."""
    images = images.detach().requires_grad_(True)
    loss = loss_of(images)
    if not loss.requires_grad:
        return torch.zeros_like(images)
    (grad,) = torch.autograd.grad(loss, images, allow_unused=True)
    return torch.zeros_like(images) if grad is None else grad


def mean_gradient(samples: int) -> Gradient:
    """Return `pixel_gradient` averaged over ``samples`` passes, for randomized models.

    The mean estimates the expectation over the model's randomness: Athalye et al., "Obfuscated
    gradients give a false sense of security", ICML 2018, section 4.2.
    """
    if samples == 1:
        return pixel_gradient

    def gradient(loss_of: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        total = pixel_gradient(loss_of, images)
        for _ in range(samples - 1):
            total = total + pixel_gradient(loss_of, images)
        return total / samples

    return gradient


def ascend(
    loss_of: Callable[[Tensor], Tensor],
    x: Tensor,
    start: Tensor,
    *,
    alpha: float | Tensor,
    eps: float | Tensor,
    steps: int,
    counts: Tensor,
    clamp: Clamp = "always",
    gradient: Gradient = pixel_gradient,
) -> Tensor:
    """Take ``steps`` projected sign steps from ``start`` that increase ``loss_of``.

    Tuning (on a GPU, as a CUDA graph) and `FeaturePGD` use this function, since no image stops
    early there; the other attacks use `climb`.

    Args:
        loss_of: maps images ``[B, C, H, W]`` to a scalar loss, summed over the batch.
        x: clean images, the centers of the balls.
        alpha, eps: step size and radius, a number or one per image, ``[B]``.
        counts: int64 ``[B, 2]``; each step adds its numbers of zero and non-finite gradients.
        clamp: when to clamp the pixels to [0, 1]: in each step (``"always"`` and ``"steps"``),
            only for the gradient and after the last step (``"inputs"``), or only after the last
            step (``"end"``).
        gradient: function that computes the loss's gradient in the images.

    Returns:
        The last iterate.
    """
    free = clamp in ("inputs", "end")
    lo, hi = (-math.inf, math.inf) if free else (0.0, 1.0)
    adv = start
    for step in range(steps):
        grad = gradient(loss_of, adv.clamp(0, 1) if clamp == "inputs" else adv)
        # the first step must not overwrite the caller's start; later steps work in place
        move = pgd_step_ if step else pgd_step
        adv = move(adv, x, grad, alpha=alpha, eps=eps, lo=lo, hi=hi, counts=counts)
    return adv.clamp_(0, 1) if free else adv
