"""Op registration, autograd function and public function of CAPT's loss."""

from typing import Any, Literal, overload

import torch
from torch import Tensor

from .._dispatch import Impl, define, direct, once_differentiable, resolve, wide_dtype
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


class _Direct(torch.autograd.Function):
    """The plain implementation, called without the dispatcher; see `direct`."""

    @staticmethod
    def forward(ctx: Any, detach_targets: bool, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        loss, cross_entropy, saved = eager.forward(Loss(*arguments))
        weights = [w for w in saved.weights if isinstance(w, Tensor)]  # both or none
        ctx.save_for_backward(saved.log_p, saved.labels, saved.divergences, *weights)
        ctx.mark_non_differentiable(cross_entropy, saved.divergences)
        ctx.set_materialize_grads(False)
        ctx.numbers, ctx.flags = saved.weights if not weights else (), saved[4:]
        ctx.detach_targets = detach_targets
        return loss, cross_entropy, saved.divergences

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * (len(Loss._fields) + 1)
        log_p, labels, divergences, *weights = ctx.saved_tensors
        saved = eager.Saved(log_p, labels, divergences, (*weights, *ctx.numbers), *ctx.flags)
        found = eager.gradients(grad, saved, ctx.needs_input_grad[1:4], ctx.detach_targets)
        return None, *found, *(None,) * (len(Loss._fields) - 3)


def _split(value: float | Tensor, dtype: torch.dtype) -> tuple[Tensor | None, float]:
    """Return ``(tensor, 0.0)`` for per-sample values and ``(None, number)`` for a number."""
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
    """Return CAPT's loss per sample, ``CE + lam * ((1 - alpha) * L_train + alpha * L_frozen)``.

    With ``p = softmax(adv_logits)``: ``CE = -log p[label]``, ``L_train = KL(p || softmax(clean))``,
    ``L_frozen = KL(p || softmax(frozen))``, where ``KL(p || q) = sum p (log p - log q)``. CAPT is
    Consistency-guided Adversarial Prompt Tuning; its abstract does not say which logits the
    cross-entropy uses, which directions the KLs have and whether gradients flow to their targets,
    so these are options. On a GPU, the forward and the backward pass read each logit matrix once,
    and ten numbers per row are saved for the backward pass; a CPU saves the log-probabilities.

    Precision: logits are taken relative to their row's maximum, so logits of 1e4 are as accurate as
    logits of 1. A KL near 0 is a difference of numbers of magnitude up to 1: in float32 its error
    is about ``1e-7 * max(1, KL)``. A KL that is negative by rounding is clamped to 0. The terms of
    the gradient have this error times the probability.

    Classes that are masked with -inf in both distributions of a KL contribute 0; if only the second
    has probability 0, the KL is infinite and its gradient is not finite. A term of weight 0 is
    omitted, whatever its value. A row without a finite logit gives NaN.

    Args:
        adv_logits: logits of the adversarial images with the trainable prompts, ``[B, C]``.
        clean_logits: logits of the clean images with the same prompts, ``[B, C]``.
        frozen_logits: logits of the clean images with the original model, ``[B, C]``. The three
            tensors may have different floating dtypes.
        labels: class indices, int64 ``[B]``.
        alpha: weight of the frozen target, from 0 to 1; a number or one per sample, ``[B]``.
        lam: weight of both KLs; a number or one per sample, ``[B]``. ``alpha`` and ``lam`` get no
            gradient, and the values of tensors are not checked.
        ce: whether the cross-entropy uses ``adv_logits`` or ``clean_logits``.
        train_kl, frozen_kl: order of the two distributions; ``"target||adv"`` is the divergence
            that ``F.kl_div(log_softmax(adv), softmax(target))`` computes.
        detach_targets: do not propagate gradients through a KL to its target. With ``ce="clean"``
            the clean logits still get the gradient of the cross-entropy.
        return_terms: also return the terms.
        impl: ``"triton"`` (GPU kernels), ``"torch"`` (plain implementation, any device), or
            ``"auto"``: the kernels on a GPU unless some logits are float64, else the plain one.

    Returns:
        The loss ``[B]``, float32 (float64 if any logits are), differentiable once; with
        ``return_terms`` also CE, L_train and L_frozen, ``[B, 3]``, detached.

    Raises:
        TypeError: logits or weights are not floating, or labels are not int64.
        ValueError: shapes or devices do not match, a weight is out of range, an option is unknown,
            or, on the CPU, a label is out of range. On a GPU, and where the plain implementation
            itself is compiled, labels are not checked: such a row's loss and gradients are NaN.
        RuntimeError: ``impl="triton"`` cannot run.
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
    if not direct(impl, *given[:6]):
        loss, terms = _ConsistencyLoss.apply(chosen, detach_targets, *given)
        return (loss, terms) if return_terms else loss
    if torch.is_grad_enabled() and any(t.requires_grad for t in given[:3]):
        loss, cross_entropy, divergences = _Direct.apply(detach_targets, *given)
    else:
        loss, cross_entropy, saved = eager.forward(given)
        divergences = saved.divergences
    return (loss, eager.terms_of(cross_entropy, divergences)) if return_terms else loss
