"""Reference implementation of the steps as in the papers, for tests and benchmarks."""

from typing import Any

import torch
from torch import Tensor


def pgd_step(
    x_adv: Tensor,
    x: Tensor,
    grad: Tensor,
    alpha: float | Tensor,
    eps: float | Tensor,
    lo: float = 0.0,
    hi: float = 1.0,
) -> Tensor:
    """Return ``clip(x + clip(x_adv + alpha * sign(grad) - x, -eps, eps), lo, hi)``.

    Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018,
    equation 3, in the order of operations of `torchattacks`.

    Args:
        x_adv, x, grad: current images, clean images and the gradient, ``[B, C, H, W]``.
        alpha, eps: step size and radius, numbers or tensors ``[B]``.
        lo, hi: the box of valid pixels.
    """
    return _project(x_adv + _each(alpha) * grad.sign(), x, eps, lo, hi)


def apgd_step(
    x_adv: Tensor,
    x_prev: Tensor,
    x: Tensor,
    grad: Tensor,
    alpha: float | Tensor,
    eps: float | Tensor,
    momentum: float = 0.75,
    lo: float = 0.0,
    hi: float = 1.0,
) -> Tensor:
    """Return ``P(x_adv + momentum * (z - x_adv) + (1 - momentum) * (x_adv - x_prev))``.

    ``z`` is the result of `pgd_step`, ``P`` its projection. Croce and Hein, "Reliable evaluation of
    adversarial robustness with an ensemble of diverse parameter-free attacks", ICML 2020, section
    4.1. The arguments are those of `pgd_step` and ``x_prev``, the images of the previous step.
    """
    z = pgd_step(x_adv, x, grad, alpha, eps, lo, hi)
    moved = x_adv + momentum * (z - x_adv) + (1 - momentum) * (x_adv - x_prev)
    return _project(moved, x, eps, lo, hi)


def _project(moved: Tensor, x: Tensor, eps: float | Tensor, lo: float, hi: float) -> Tensor:
    """Project onto the ball, then onto the box."""
    radius: Any = _each(eps)
    return torch.clamp(x + torch.clamp(moved - x, min=-radius, max=radius), min=lo, max=hi)


def _each(value: float | Tensor) -> float | Tensor:
    """Return the number, or the per-image values reshaped to broadcast."""
    return value.view(-1, 1, 1, 1) if isinstance(value, Tensor) else value
