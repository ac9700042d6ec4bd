"""The formulas in plain tensor code: what runs on the CPU."""

import torch
from torch import Tensor

from .layout import channel_of, output_format


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
    normalized: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
) -> Tensor:
    """``clip(x + clip(x_adv + alpha * sign(grad) - x, -eps, eps), lo, hi)``, images alike.

    A NaN in ``grad`` stands still: `torch.sign` gives 0 for it. ``alphas`` and ``epses``, ``[B]``,
    stand for ``alpha`` and ``eps`` where they are given. ``counts`` and ``normalized`` are written.
    """
    step = _each(alpha, alphas, x_adv) * _sign(grad, targeted, x_adv)
    out = _project(x_adv + step, x, _each(eps, epses, x_adv), lo, hi)
    count_gradients(grad, counts)
    out = out.contiguous(memory_format=output_format(x_adv))
    if normalized is not None:
        assert mean is not None
        assert std is not None
        channel = channel_of(x_adv)
        normalized.copy_((out - mean.view(channel)) / std.view(channel))
    return out


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


def momentum_step(
    x_adv: Tensor,
    x: Tensor,
    grad: Tensor,
    velocity: Tensor,
    alphas: Tensor | None,
    epses: Tensor | None,
    alpha: float,
    eps: float,
    decay: float,
    lo: float,
    hi: float,
    targeted: bool,
    counts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """``v' = decay * v + grad / mean|grad|``, then the sign step along ``v'``: images and ``v'``.

    Entries that are not finite count as 0, and so does a gradient without a single other entry.
    """
    wide = grad.to(x_adv.dtype)
    wide = torch.where(wide.isfinite(), wide, 0.0)
    # each share by itself: the sum of large gradients would overflow
    share = wide.flatten(1).abs() * (1 / max(1, x[0:1].numel()))
    mean = share.sum(dim=1).view(-1, *[1] * (x_adv.ndim - 1))
    direction = torch.where(mean > 0, wide / mean, 0.0)
    out_velocity = decay * velocity + direction
    step = _each(alpha, alphas, x_adv) * _sign(out_velocity, targeted, x_adv)
    out = _project(x_adv + step, x, _each(eps, epses, x_adv), lo, hi)
    count_gradients(grad, counts)
    layout = output_format(x_adv)
    return out.contiguous(memory_format=layout), out_velocity.contiguous(memory_format=layout)


def count_gradients(grad: Tensor, counts: Tensor | None) -> None:
    """Add how many entries of each image's gradient are zero, and non-finite: int64 ``[B, 2]``."""
    if counts is None:
        return
    per_image = grad.flatten(1)
    counts[:, 0] += (per_image == 0).sum(dim=1)
    counts[:, 1] += per_image.shape[1] - per_image.isfinite().sum(dim=1)
