"""Schemas, implementations, fakes, and the public functions."""

import torch
from torch import Tensor

from .._check import check_number, check_writable
from .._dispatch import Impl, define, resolve
from . import eager
from .arguments import Step, TwoPointStep
from .check import PerImage, check_counts, check_images, check_radius, split
from .memory_format import output_format


def _like_x_adv(step: Step | TwoPointStep) -> Tensor:
    return torch.empty_like(step.x_adv, memory_format=output_format(step.x_adv))


_pgd_step = define(
    "pgd_step",
    Step,
    "Tensor",
    eager=eager.pgd_step,
    launch=".launch:launch_pgd_step",
    fake=_like_x_adv,
    writes={"counts"},
)
_pgd_step_ = define(
    "pgd_step_",
    Step,
    "()",
    eager=eager.pgd_step_,
    launch=".launch:launch_pgd_step_",
    fake=lambda _: None,
    writes={"x_adv", "counts"},
)
_apgd_step = define(
    "apgd_step",
    TwoPointStep,
    "Tensor",
    eager=eager.apgd_step,
    launch=".launch:launch_apgd_step",
    fake=_like_x_adv,
    writes={"counts"},
)


def pgd_step(
    x_adv: Tensor,
    x: Tensor,
    grad: Tensor,
    *,
    alpha: PerImage,
    eps: PerImage,
    lo: float = 0.0,
    hi: float = 1.0,
    targeted: bool = False,
    counts: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """One projected sign step: ``clip(x + clip(x_adv + alpha*sign(grad) - x, -eps, eps), lo, hi)``.

    Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018,
    equation 3, in the order of operations that `torchattacks` has: rounding may leave the ball by
    1e-7, never the box. One read of each input, one write of each output. Not differentiable.

    Args:
        x_adv: current images, ``[B, ...]``, float32 (float64 for tests); not changed.
        x: clean images, shape and dtype of ``x_adv``.
        grad: the loss's gradient in the pixels, shape of ``x_adv``, any floating dtype. Where it
            is zero or NaN the pixel stands still.
        alpha: step size in pixel units; one number, or one for each image, ``[B]``.
        eps: radius of the L-inf ball in pixel units, likewise; infinite for none.
        lo, hi: the box of valid pixels.
        targeted: step against the gradient.
        counts: int64 ``[B, 2]``; adds each image's number of zero and of non-finite entries of
            ``grad``, so that a stalled attack can be told from a robust model.
        impl: ``"triton"`` (a GPU kernel), ``"torch"`` (plain code, any device), or ``"auto"``: the
            kernel for float32 images on a GPU, plain code elsewhere. Bits are the same.

    Returns:
        The next images, a new tensor like ``x_adv``.

    Raises:
        TypeError: ``x_adv`` in low precision, or another type or dtype than said above.
        ValueError: shapes or devices that don't fit, a negative ``alpha`` or ``eps``, an ``alpha``
            that is not finite, ``lo > hi``. The values of tensors are not looked at.
        RuntimeError: ``impl="triton"`` where it can't run.
    """
    step = _step(x_adv, x, grad, alpha, eps, lo, hi, targeted, counts)
    return _pgd_step(resolve(impl, *step[:5]), step)


def pgd_step_(
    x_adv: Tensor,
    x: Tensor,
    grad: Tensor,
    *,
    alpha: PerImage,
    eps: PerImage,
    lo: float = 0.0,
    hi: float = 1.0,
    targeted: bool = False,
    counts: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """`pgd_step`, written over ``x_adv``, which is handed back."""
    step = _step(x_adv, x, grad, alpha, eps, lo, hi, targeted, counts)
    check_writable(x_adv, "x_adv")
    _pgd_step_(resolve(impl, *step[:5]), step)
    return x_adv


def _step(
    x_adv: Tensor,
    x: Tensor,
    grad: Tensor,
    alpha: PerImage,
    eps: PerImage,
    lo: float,
    hi: float,
    targeted: bool,
    counts: Tensor | None,
) -> Step:
    check_images(x_adv, x=x, grad=grad)
    check_radius(x_adv, alpha, eps, lo, hi)
    check_counts(x_adv, counts)
    (alpha, alphas), (eps, epses) = split(alpha, x_adv), split(eps, x_adv)
    images = x_adv.detach(), x.detach(), grad.detach()
    return Step(*images, alphas, epses, alpha, eps, float(lo), float(hi), targeted, counts)


def apgd_step(
    x_adv: Tensor,
    x_prev: Tensor,
    x: Tensor,
    grad: Tensor,
    *,
    alpha: PerImage,
    eps: PerImage,
    momentum: float = 0.75,
    lo: float = 0.0,
    hi: float = 1.0,
    targeted: bool = False,
    counts: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """APGD's step from the last two points, in one pass.

    With ``P`` the projection of `pgd_step` and ``z = P(x_adv + alpha * sign(grad))``::

        P(x_adv + momentum * (z - x_adv) + (1 - momentum) * (x_adv - x_prev))

    Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", ICML 2020, section 4.1.

    Args:
        x_adv, x_prev: the current images and those of the step before, ``[B, ...]``, float32.
        x: clean images.
        grad: the gradient at ``x_adv``, any floating dtype.
        alpha: step size, usually one for each image, ``[B]``: APGD halves each on its own.
        momentum: share of the new point: 0.75, and 1 in the first step.
        eps, lo, hi, targeted, counts, impl: as for `pgd_step`.

    Returns:
        The next images, a new tensor like ``x_adv``.

    Raises:
        TypeError, ValueError, RuntimeError: as `pgd_step`; ``momentum`` outside [0, 1].
    """
    check_images(x_adv, x_prev=x_prev, x=x, grad=grad)
    check_radius(x_adv, alpha, eps, lo, hi)
    check_counts(x_adv, counts)
    momentum = check_number(momentum, "momentum", low=0.0, high=1.0)
    (alpha, alphas), (eps, epses) = split(alpha, x_adv), split(eps, x_adv)
    images = x_adv.detach(), x_prev.detach(), x.detach(), grad.detach()
    settings = alphas, epses, alpha, eps, momentum, float(lo), float(hi), targeted, counts
    step = TwoPointStep._make((*images, *settings))
    return _apgd_step(resolve(impl, *images), step)
