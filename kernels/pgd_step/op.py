"""Op registration and public functions of the steps."""

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
    """Return ``clip(x + clip(x_adv + alpha * sign(grad) - x, -eps, eps), lo, hi)``.

    The projected sign step of Madry et al., "Towards deep learning models resistant to adversarial
    attacks", ICLR 2018, equation 3, in the order of operations of `torchattacks`: by rounding, the
    result may leave the ball by 1e-7, but never the box. The kernel reads each input once and
    writes each output once. Not differentiable.

    Args:
        x_adv: current images, ``[B, ...]``, float32 (float64 for tests); not modified.
        x: clean images, shape and dtype of ``x_adv``.
        grad: gradient of the loss w.r.t. the pixels, shape of ``x_adv``, any floating dtype. Pixels
            whose gradient is zero or NaN do not move.
        alpha: step size in pixel units; a number, or one per image, ``[B]``.
        eps: radius of the L-inf ball in pixel units, likewise; infinite for no ball.
        lo, hi: the box of valid pixels.
        targeted: whether to step against the gradient.
        counts: int64 ``[B, 2]``; each image's number of zero and of non-finite entries of ``grad``
            is added to it, which distinguishes a stalled attack from a robust model.
        impl: ``"triton"`` (a GPU kernel), ``"torch"`` (plain implementation, any device), or
            ``"auto"``: the kernel for float32 images on a GPU, else the plain implementation. All
            give the same bits.

    Returns:
        The next images, a new tensor like ``x_adv``.

    Raises:
        TypeError: ``x_adv`` is in low precision, or another type or dtype is not as above.
        ValueError: shapes or devices do not match, ``alpha`` or ``eps`` is negative, ``alpha`` is
            not finite, or ``lo > hi``. The values of tensors are not checked.
        RuntimeError: ``impl="triton"`` cannot run.
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
    """Like `pgd_step`, but modify ``x_adv`` in place and return it."""
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
    """Return APGD's step from the last two points, computed in one pass.

    With ``P`` the projection of `pgd_step` and ``z = P(x_adv + alpha * sign(grad))``::

        P(x_adv + momentum * (z - x_adv) + (1 - momentum) * (x_adv - x_prev))

    Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", ICML 2020, section 4.1.

    Args:
        x_adv, x_prev: the current images and those of the previous step, ``[B, ...]``, float32.
        x: clean images.
        grad: gradient at ``x_adv``, any floating dtype.
        alpha: step size, usually one per image, ``[B]``: APGD halves them separately.
        momentum: weight of the new point: 0.75, and 1 in the first step.
        eps, lo, hi, targeted, counts, impl: as for `pgd_step`.

    Returns:
        The next images, a new tensor like ``x_adv``.

    Raises:
        TypeError, ValueError, RuntimeError: as `pgd_step`, or ``momentum`` is not in [0, 1].
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
