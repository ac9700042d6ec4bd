"""Pixel gradients, and plain projected sign steps along them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import pgd_step, pgd_step_


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """``model`` in eval mode, if it is a module; afterwards every part is as it was."""
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
    """Where a module's weights or buffers are; ``otherwise`` for a plain callable."""
    if isinstance(model, nn.Module):
        tensor = next(iter([*model.parameters(), *model.buffers()]), None)
        if tensor is not None:
            return tensor.device
    return otherwise


Gradient = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]


def pixel_gradient(loss_of: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The gradient of ``loss_of(images)`` in the images alone: zeros where the graph is cut."""
    images = images.detach().requires_grad_(True)
    loss = loss_of(images)
    if not loss.requires_grad:
        return torch.zeros_like(images)
    (grad,) = torch.autograd.grad(loss, images, allow_unused=True)
    return torch.zeros_like(images) if grad is None else grad


def mean_gradient(samples: int) -> Gradient:
    """`pixel_gradient`, averaged over so many passes: the expectation over a model's randomness.

    Athalye et al., "Obfuscated gradients give a false sense of security", ICML 2018, section 4.2.
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
    gradient: Gradient = pixel_gradient,
) -> Tensor:
    """``steps`` projected sign steps up ``loss_of`` from ``start``.

    For steps that are captured in a CUDA graph, or that no image leaves; attacks on labeled images
    go through `slots.climb`.

    Args:
        loss_of: images ``[B, 3, H, W]`` to a scalar loss, summed over the batch.
        x: clean images, the center of the ball.
        alpha, eps: one number, or one for each image, ``[B]``.
        counts: int64 ``[B, 2]``, to which each step adds its zero and non-finite gradients.
        gradient: how the loss's gradient in the images is taken.

    Returns:
        The last iterate.
    """
    adv = start
    for step in range(steps):
        grad = gradient(loss_of, adv)
        # the start is the caller's; what the first step made is written over
        move = pgd_step_ if step else pgd_step
        adv = move(adv, x, grad, alpha=alpha, eps=eps, counts=counts)
    return adv
