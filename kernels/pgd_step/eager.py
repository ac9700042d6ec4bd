"""Plain PyTorch implementation of the steps; runs on the CPU."""

import torch
from torch import Tensor

from .arguments import Step, TwoPointStep
from .memory_format import output_format


def _each(value: float, values: Tensor | None, like: Tensor) -> float | Tensor:
    """Return the number, or the per-image values reshaped to broadcast with ``[B, ...]``."""
    if values is None:
        return value
    return values.to(like.dtype).view(-1, *[1] * (like.ndim - 1))


def _project(moved: Tensor, x: Tensor, eps: float | Tensor, lo: float, hi: float) -> Tensor:
    delta = moved - x
    delta = torch.clamp(delta, -eps, eps) if isinstance(eps, Tensor) else delta.clamp_(-eps, eps)
    return (x + delta).clamp_(lo, hi)


def _sign(grad: Tensor, targeted: bool, like: Tensor) -> Tensor:
    sign = grad.sign().to(like.dtype)
    return sign.neg_() if targeted else sign


def pgd_step(step: Step) -> Tensor:
    """Return ``clip(x + clip(x_adv + alpha * sign(grad) - x, -eps, eps), lo, hi)``.

    A pixel with a NaN in ``grad`` does not move, since `torch.sign` gives 0. ``counts`` is updated.
    """
    x_adv = step.x_adv
    moved = x_adv + _each(step.alpha, step.alphas, x_adv) * _sign(step.grad, step.targeted, x_adv)
    radius = _each(step.eps, step.epses, x_adv)
    out = _project(moved, step.x, radius, step.lo, step.hi)
    count_gradients(step.grad, step.counts)
    return out.contiguous(memory_format=output_format(x_adv))


def pgd_step_(step: Step) -> None:
    """Like `pgd_step`, but modify ``x_adv`` in place."""
    step.x_adv.copy_(pgd_step(step))


def apgd_step(step: TwoPointStep) -> Tensor:
    """Return ``P(x_adv + momentum * (z - x_adv) + (1 - momentum) * (x_adv - x_prev))``.

    ``z`` is the result of `pgd_step` and ``P`` its projection.
    """
    x_adv, momentum = step.x_adv, step.momentum
    radius = _each(step.eps, step.epses, x_adv)
    tried = x_adv + _each(step.alpha, step.alphas, x_adv) * _sign(step.grad, step.targeted, x_adv)
    tried = _project(tried, step.x, radius, step.lo, step.hi)
    moved = x_adv + (tried - x_adv) * momentum + (x_adv - step.x_prev) * (1 - momentum)
    count_gradients(step.grad, step.counts)
    out = _project(moved, step.x, radius, step.lo, step.hi)
    return out.contiguous(memory_format=output_format(x_adv))


def count_gradients(grad: Tensor, counts: Tensor | None) -> None:
    """Add each image's number of zero and of non-finite gradient entries to ``counts``."""
    if counts is None:
        return
    per_image = grad.flatten(1)
    counts[:, 0] += (per_image == 0).sum(dim=1)
    counts[:, 1] += per_image.shape[1] - per_image.isfinite().sum(dim=1)
