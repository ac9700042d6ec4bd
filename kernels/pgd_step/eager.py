"""The formulas in plain tensor code: what runs on the CPU."""

import torch
from torch import Tensor

from .memory_format import output_format


def _each(value: float, values: Tensor | None, like: Tensor) -> float | Tensor:
    """One number for all, or ``[B]`` numbers to go with ``[B, ...]``."""
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


def pgd_step(
    x_adv: Tensor,
    x: Tensor,
    grad: Tensor,
    alphas: Tensor | None,
    epses: Tensor | None,
    alpha: float,
    eps: float,
    lo: float,
    hi: float,
    targeted: bool,
    counts: Tensor | None,
) -> Tensor:
    """``clip(x + clip(x_adv + alpha * sign(grad) - x, -eps, eps), lo, hi)``, images alike.

    A NaN in ``grad`` stands still: `torch.sign` gives 0 for it. ``alphas`` and ``epses``, ``[B]``,
    stand for ``alpha`` and ``eps`` where they are given. ``counts`` is written.
    """
    step = _each(alpha, alphas, x_adv) * _sign(grad, targeted, x_adv)
    out = _project(x_adv + step, x, _each(eps, epses, x_adv), lo, hi)
    count_gradients(grad, counts)
    return out.contiguous(memory_format=output_format(x_adv))


def pgd_step_(x_adv: Tensor, *arguments: Tensor | float | bool | None) -> None:
    """`pgd_step`, written over ``x_adv``."""
    x_adv.copy_(pgd_step(x_adv, *arguments))  # type: ignore[arg-type]


def apgd_step(
    x_adv: Tensor,
    x_prev: Tensor,
    x: Tensor,
    grad: Tensor,
    alphas: Tensor | None,
    epses: Tensor | None,
    alpha: float,
    eps: float,
    momentum: float,
    lo: float,
    hi: float,
    targeted: bool,
    counts: Tensor | None,
) -> Tensor:
    """The two-point step, with ``z`` the point that `pgd_step` gives and ``P`` its projection.

    ``P(x_adv + momentum * (z - x_adv) + (1 - momentum) * (x_adv - x_prev))``
    """
    radius = _each(eps, epses, x_adv)
    step = _each(alpha, alphas, x_adv) * _sign(grad, targeted, x_adv)
    tried = _project(x_adv + step, x, radius, lo, hi)
    moved = x_adv + (tried - x_adv) * momentum + (x_adv - x_prev) * (1 - momentum)
    count_gradients(grad, counts)
    out = _project(moved, x, radius, lo, hi)
    return out.contiguous(memory_format=output_format(x_adv))


def count_gradients(grad: Tensor, counts: Tensor | None) -> None:
    """Add how many entries of each image's gradient are zero, and non-finite: int64 ``[B, 2]``."""
    if counts is None:
        return
    per_image = grad.flatten(1)
    counts[:, 0] += (per_image == 0).sum(dim=1)
    counts[:, 1] += per_image.shape[1] - per_image.isfinite().sum(dim=1)
