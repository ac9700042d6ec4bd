"""The public function: validation and the choice of implementation."""

from typing import Literal

import torch
from torch import Tensor

from . import eager


def pgd_step(
    x_adv: Tensor,
    x: Tensor,
    grad: Tensor,
    *,
    alpha: float,
    eps: float,
    lo: float = 0.0,
    hi: float = 1.0,
    targeted: bool = False,
    counts: Tensor | None = None,
    impl: Literal["auto", "triton", "torch"] = "auto",
) -> Tensor:
    """One projected sign step: ``clip(x + clip(x_adv + alpha*sign(grad) - x, -eps, eps), lo, hi)``.

    Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018,
    equation 3, in the order of operations that `torchattacks` has: rounding may leave the ball by
    1e-7, never the box.

    Args:
        x_adv: current images, ``[B, ...]``, float32 (float64 for tests); not changed.
        x: clean images, shape and dtype of ``x_adv``.
        grad: the loss's gradient in the pixels, shape of ``x_adv``, any floating dtype. Where it
            is zero or NaN the pixel stands still.
        alpha: step size in pixel units.
        eps: radius of the L-inf ball in pixel units.
        lo, hi: the box of valid pixels.
        targeted: step against the gradient.
        counts: int64 ``[B, 2]``; adds each image's number of zero and of non-finite entries of
            ``grad``, so that a stalled attack can be told from a robust model.
        impl: ``"torch"`` (plain code, any device) or ``"auto"``, which is the same as long as
            there is no Triton kernel.

    Returns:
        The next images, a new tensor like ``x_adv``.

    Raises:
        TypeError: ``x_adv`` in low precision, or ``x`` of another dtype.
        ValueError: shapes or devices that don't fit, a negative ``alpha`` or ``eps``, ``lo > hi``.
        RuntimeError: ``impl="triton"``, which this version lacks.
    """
    _check(x_adv, x, grad, alpha, eps, lo, hi, counts)
    if impl == "triton":
        raise RuntimeError(
            "impl='triton': pgd_step has no Triton kernel yet; use 'auto' or 'torch'"
        )
    if impl not in ("auto", "torch"):
        raise ValueError(f"impl must be 'auto', 'triton' or 'torch', got {impl!r}")
    if counts is not None:
        counts += eager.count_gradients(grad)
    return eager.pgd_step(x_adv, x, grad, -alpha if targeted else alpha, eps, lo, hi)


def _check(
    x_adv: Tensor,
    x: Tensor,
    grad: Tensor,
    alpha: float,
    eps: float,
    lo: float,
    hi: float,
    counts: Tensor | None,
) -> None:
    if x_adv.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x_adv must be float32, as less leaves the eps-ball; got {x_adv.dtype}")
    if x.dtype != x_adv.dtype:
        raise TypeError(f"x must have x_adv's dtype {x_adv.dtype}, got {x.dtype}")
    if x.shape != x_adv.shape or grad.shape != x_adv.shape:
        raise ValueError(
            f"x and grad must have x_adv's shape {list(x_adv.shape)}, "
            f"got {list(x.shape)} and {list(grad.shape)}"
        )
    if x.device != x_adv.device or grad.device != x_adv.device:
        raise ValueError(
            f"x and grad must be on x_adv's device {x_adv.device}, got {x.device} and {grad.device}"
        )
    if alpha < 0 or eps < 0:
        raise ValueError(f"alpha and eps must not be negative, got {alpha} and {eps}")
    if lo > hi:
        raise ValueError(f"lo must not be above hi, got {lo} and {hi}")
    if counts is not None and (counts.shape != (len(x_adv), 2) or counts.dtype != torch.int64):
        raise ValueError(
            f"counts must be int64 [{len(x_adv)}, 2], got {counts.dtype} {list(counts.shape)}"
        )
