"""Schemas, implementations, fakes, autograd, and the public function."""

from typing import Any, Literal, overload

import torch
from torch import Tensor

from .._dispatch import Impl, define, once_differentiable, resolve, wide_dtype
from . import eager
from .arguments import Loss, LossBackward
from .check import DIRECTIONS, check_choice, check_labels, check_logits, check_weight

Direction = Literal["adv||target", "target||adv"]


def _fake(given: Loss) -> tuple[Tensor, Tensor, Tensor]:
    dtype, rows = wide_dtype(*given[:3]), given.adv.shape[0]
    shapes = [(rows,), (rows, 3), (rows, eager.STATISTICS)]
    loss, terms, statistics = (given.adv.new_empty(shape, dtype=dtype) for shape in shapes)
    return loss, terms, statistics


def _fake_backward(given: LossBackward) -> list[Tensor]:
    pairs = zip((given.adv, given.clean, given.frozen), given.wanted, strict=True)
    return [logits.new_empty(logits.shape) for logits, want in pairs if want]


_forward = define(
    "consistency_loss",
    Loss,
    "(Tensor loss, Tensor terms, Tensor statistics)",
    eager=eager.consistency_loss,
    launch=".launch:launch_consistency_loss",
    fake=_fake,
)
_backward = define(
    "consistency_loss_backward",
    LossBackward,
    "Tensor[]",
    eager=eager.consistency_loss_backward,
    launch=".launch:launch_consistency_loss_backward",
    fake=_fake_backward,
)


class _ConsistencyLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, impl: Impl, detach_targets: bool, *arguments: Any
    ) -> tuple[Tensor, Tensor]:
        given = Loss(*arguments)
        loss, terms, statistics = _forward(impl, given)
        ctx.save_for_backward(*given[:4], statistics)
        ctx.mark_non_differentiable(terms)
        reverse = given.train_reversed, given.frozen_reversed
        ctx.impl, ctx.flags = impl, (given.ce_clean, *reverse, detach_targets)
        return loss, terms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        wanted = list(ctx.needs_input_grad[2:5])
        given = LossBackward._make((grad, *ctx.saved_tensors, *ctx.flags, wanted))
        found = iter(_backward(ctx.impl, given))
        gradients = [next(found) if want else None for want in wanted]
        return None, None, *gradients, *(None,) * (len(Loss._fields) - 3)


def _split(value: float | Tensor, dtype: torch.dtype) -> tuple[Tensor | None, float]:
    """A tensor of one number for each sample, or a number for all."""
    if isinstance(value, Tensor):
        return value.detach().to(dtype).contiguous(), 0.0
    return None, float(value)


@overload
def consistency_loss(
    adv_logits: Tensor,
    clean_logits: Tensor,
    frozen_logits: Tensor,
    labels: Tensor,
    *,
    alpha: float | Tensor,
    lam: float | Tensor = 1.0,
    ce: Literal["adv", "clean"] = "adv",
    train_kl: Direction = "adv||target",
    frozen_kl: Direction = "adv||target",
    detach_targets: bool = True,
    return_terms: Literal[False] = False,
    impl: Impl = "auto",
) -> Tensor: ...


@overload
def consistency_loss(
    adv_logits: Tensor,
    clean_logits: Tensor,
    frozen_logits: Tensor,
    labels: Tensor,
    *,
    alpha: float | Tensor,
    lam: float | Tensor = 1.0,
    ce: Literal["adv", "clean"] = "adv",
    train_kl: Direction = "adv||target",
    frozen_kl: Direction = "adv||target",
    detach_targets: bool = True,
    return_terms: Literal[True],
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]: ...


def consistency_loss(
    adv_logits: Tensor,
    clean_logits: Tensor,
    frozen_logits: Tensor,
    labels: Tensor,
    *,
    alpha: float | Tensor,
    lam: float | Tensor = 1.0,
    ce: Literal["adv", "clean"] = "adv",
    train_kl: Direction = "adv||target",
    frozen_kl: Direction = "adv||target",
    detach_targets: bool = True,
    return_terms: bool = False,
    impl: Impl = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """CAPT's loss of each sample: ``CE + lam * ((1 - alpha) * L_train + alpha * L_frozen)``.

    With ``p = softmax(adv_logits)``: ``CE = -log p[label]``, ``L_train = KL(p || softmax(clean))``,
    ``L_frozen = KL(p || softmax(frozen))``, where ``KL(p || q) = sum p (log p - log q)``. CAPT is
    Consistency-guided Adversarial Prompt Tuning; its abstract leaves open which logits the
    cross-entropy reads, the directions of the KLs and whether their targets learn: hence options.
    Each matrix is read once forward and once backward, and ten numbers a row are kept.

    Digits: logits are taken relative to their row's largest, so that 1e4 loses no more than 1. A
    KL near 0 is a difference of numbers up to the size of 1 and has an absolute error of about
    1e-7 in float32, relative to ``max(1, KL)``; rounding below 0 is cut off. The gradient's terms
    carry that error times the probability.

    Classes masked with -inf in both distributions of a KL count as 0; where only the second has
    probability 0 the KL is infinite and its gradient is not finite. A term of weight 0 is left
    out, whatever its value. A row without a finite logit is NaN.

    Args:
        adv_logits: of the adversarial images, through the prompts that learn, ``[B, C]``.
        clean_logits: of the clean images, through the same prompts, ``[B, C]``.
        frozen_logits: of the clean images, through the untouched model, ``[B, C]``. Each of the
            three may be of another floating dtype.
        labels: classes, int64 ``[B]``.
        alpha: share of the frozen target, from 0 to 1; or one for each sample, ``[B]``.
        lam: weight of both KLs; or one for each sample, ``[B]``. Neither gets a gradient, and
            values of tensors are not looked at.
        ce: whether the cross-entropy reads ``adv_logits`` or ``clean_logits``.
        train_kl, frozen_kl: which distribution comes first; ``"target||adv"`` is what
            ``F.kl_div(log_softmax(adv), softmax(target))`` computes.
        detach_targets: no gradient goes through a KL into its target. The clean logits still get
            the cross-entropy's with ``ce="clean"``.
        return_terms: give the terms too.
        impl: ``"triton"`` (GPU kernels), ``"torch"`` (plain code, any device), or ``"auto"``: the
            kernels on a GPU where no logits are float64, plain code elsewhere.

    Returns:
        The loss ``[B]``, float32 (float64 if any logits are), differentiable once; with
        ``return_terms`` also CE, L_train and L_frozen, ``[B, 3]``, detached.

    Raises:
        TypeError: logits or weights that aren't floating, labels that aren't int64.
        ValueError: shapes or devices that don't fit, a weight out of range, an unknown option; a
            label out of range on the CPU. On a GPU, and where plain code itself is compiled, such
            a row's loss and gradients become NaN instead, without a look at the values.
        RuntimeError: ``impl="triton"`` where it can't run.
    """
    check_logits(adv_logits, clean_logits=clean_logits, frozen_logits=frozen_logits)
    check_labels(adv_logits, labels)
    check_weight(alpha, "alpha", adv_logits, most=1.0)
    check_weight(lam, "lam", adv_logits)
    check_choice(ce, "ce", ("adv", "clean"))
    check_choice(train_kl, "train_kl", DIRECTIONS)
    check_choice(frozen_kl, "frozen_kl", DIRECTIONS)
    chosen = resolve(impl, adv_logits, clean_logits, frozen_logits)
    dtype = wide_dtype(adv_logits, clean_logits, frozen_logits)
    (alphas, alpha), (lams, lam) = _split(alpha, dtype), _split(lam, dtype)
    if detach_targets:
        frozen_logits = frozen_logits.detach()
        if ce == "adv":
            clean_logits = clean_logits.detach()
    given = Loss(
        *(adv_logits, clean_logits, frozen_logits, labels),
        *(alphas, lams, alpha, lam),
        *(ce == "clean", train_kl == DIRECTIONS[1], frozen_kl == DIRECTIONS[1]),
    )
    loss, terms = _ConsistencyLoss.apply(chosen, detach_targets, *given)
    return (loss, terms) if return_terms else loss
