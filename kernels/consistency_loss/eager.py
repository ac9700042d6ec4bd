"""Plain PyTorch implementation of CAPT's loss; runs on the CPU.

``KL(p|q) = sum p (log p - log q)``, with log-probabilities relative to the row's largest logit r:
``log p = (x - r) - log s``, ``s = sum exp(x - r)``. The registered op saves ``r`` and ``log s``
separately for the backward, which is as accurate for logits of 1e4 as for logits of 1; on the CPU
the log-probabilities themselves are saved.

A small batch takes as long as the number of calls to torch, so both passes make few. A probability
or weight of 0 needs a mask only if it is multiplied by an infinity, which gives NaN: where values
can be read, results without NaN are computed without masks.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .._dispatch import wide_dtype
from .arguments import Loss, LossBackward

# columns of the tensor saved for the backward: r of the adversarial, clean and frozen logits, log s
# of the three, the two divergences, and the weights of the divergences
STATISTICS = 10

_NO_LABEL = -(2**63)  # ignored by torch, as -100 is by default: every other label is checked

Weight = float | Tensor


class Saved(NamedTuple):
    """Results of the forward pass, and its arguments that the backward pass needs.

    Attributes:
        log_p: log-probabilities of the adversarial, clean and frozen logits, ``[3, B, C]``.
        labels: int64 ``[B]``.
        divergences: ``[2, B]``.
        weights: of the divergences, numbers or ``[B]``.
        ce_clean: whether the cross-entropy is that of the clean logits.
        reverse: of each divergence, whether the target is its first distribution.
    """

    log_p: Tensor
    labels: Tensor
    divergences: Tensor
    weights: tuple[Weight, Weight]
    ce_clean: bool
    reverse: tuple[bool, bool]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The first and second distribution of each divergence."""
        targets = zip((1, 2), self.reverse, strict=True)
        return [(target, 0) if swapped else (0, target) for target, swapped in targets]


def readable(tensor: Tensor) -> bool:
    """Return whether the values may be read: on the CPU, where that needs no synchronization."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _has_nan(*tensors: Tensor) -> bool:
    return any(math.isnan(t.sum().item()) for t in tensors)


def _valid(labels: Tensor, classes: int) -> tuple[Tensor, Tensor | None]:
    """Return labels in range, and a mask of those that were; None where torch checks the range."""
    if readable(labels):
        return labels, None
    valid = (labels >= 0) & (labels < classes)
    return torch.where(valid, labels, 0), valid


def _where(valid: Tensor | None, values: Tensor) -> Tensor:
    """Return the values, NaN where the label is out of range."""
    return values if valid is None else torch.where(valid, values, torch.nan)


def _cross_entropy(log_p: Tensor, labels: Tensor) -> Tensor:
    inside, valid = _valid(labels, log_p.shape[1])
    try:
        found = F.nll_loss(log_p, inside, reduction="none", ignore_index=_NO_LABEL)
    except IndexError:
        low, high = (int(v) for v in labels.aminmax())
        most = log_p.shape[1] - 1
        raise ValueError(f"labels must be between 0 and {most}, got {low} to {high}") from None
    return _where(valid, found)


def _rows(log_p: Tensor, which: tuple[int, int]) -> Tensor:
    """Return two of the three distributions, ``[2, B, C]``; ``[1, B, C]`` if they are the same."""
    if which == (1, 2):
        return log_p[1:]
    return log_p[:1] if which == (0, 0) else torch.stack([log_p[i] for i in which])


def _divergences(saved: Saved, masked: bool) -> Tensor:
    """Return ``sum p (log p - log q)``, ``[2, B]``; if masked, a p of 0 gives 0 for any q."""
    first, second = (_rows(saved.log_p, which) for which in zip(*saved.pairs, strict=True))
    p = first.exp()
    terms = (first - second).mul_(p)
    return (terms.masked_fill_(p == 0, 0.0) if masked else terms).sum(dim=2)


def forward(given: Loss) -> tuple[Tensor, Tensor, Saved]:
    """Return the loss ``[B]``, its cross-entropy ``[B]``, and what `gradients` needs."""
    wide = wide_dtype(*given[:3])
    log_p = torch.stack(given[:3]).to(wide).log_softmax(dim=2)
    alpha = given.alpha if given.alphas is None else given.alphas.to(wide)
    lam = given.lam if given.lams is None else given.lams.to(wide)
    weights = lam * (1 - alpha), lam * alpha
    reverse = given.train_reversed, given.frozen_reversed
    saved = Saved(log_p, given.labels, log_p, weights, given.ce_clean, reverse)
    cross_entropy = _cross_entropy(log_p[int(given.ce_clean)], given.labels)
    look = readable(log_p)
    divergences = _divergences(saved, masked=not look)
    if look and _has_nan(divergences):
        divergences = _divergences(saved, masked=True)
    divergences.clamp_(min=0)  # rounding can make a divergence negative
    loss = cross_entropy
    for weight, value in zip(weights, divergences.unbind(), strict=True):
        # a weight of 0 omits a divergence, even if it is infinite
        if isinstance(weight, Tensor):
            loss = loss + (weight * value).masked_fill_(weight == 0, 0.0)
        elif weight:
            loss = loss.add(value, alpha=weight)
    return loss, cross_entropy, saved._replace(divergences=divergences)


def terms_of(cross_entropy: Tensor, divergences: Tensor) -> Tensor:
    """Return the loss's three terms, ``[B, 3]``."""
    return torch.cat([cross_entropy[None], divergences]).t().contiguous()


def consistency_loss(given: Loss) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``CE + lam * ((1 - alpha) * L_train + alpha * L_frozen)`` of each sample.

    Returns:
        The loss ``[B]``, its terms ``[B, 3]``, and the statistics saved for the backward.
    """
    loss, cross_entropy, saved = forward(given)
    references = [t.amax(dim=1).to(loss.dtype) for t in given[:3]]
    weights = [torch.as_tensor(w, dtype=loss.dtype, device=loss.device) for w in saved.weights]
    statistics = [
        *references,
        *saved.log_p.amax(dim=2).neg().unbind(),  # the largest log-probability is -log s
        *saved.divergences.unbind(),
        *(w.expand_as(loss) for w in weights),
    ]
    return loss, terms_of(cross_entropy, saved.divergences), torch.stack(statistics, dim=1)


def consistency_loss_backward(given: LossBackward) -> list[Tensor]:
    """Return the ``wanted`` gradients of the adversarial, clean and frozen logits."""
    columns = given.statistics.t()  # [10, B]
    log_p = torch.stack(given[1:4]).to(columns.dtype)
    log_p.sub_(columns[:3, :, None]).sub_(columns[3:6, :, None])
    weights, reverse = (columns[8], columns[9]), (given.train_reversed, given.frozen_reversed)
    saved = Saved(log_p, given.labels, columns[6:8], weights, given.ce_clean, reverse)
    found = gradients(given.grad, saved, given.wanted, given.detach_targets)
    logits = zip(given[1:4], found, strict=True)
    return [
        torch.zeros_like(t, memory_format=torch.contiguous_format) if g is None else g.to(t.dtype)
        for (t, g), want in zip(logits, given.wanted, strict=True)
        if want
    ]


def gradients(
    grad: Tensor, saved: Saved, wanted: Sequence[bool], detach_targets: bool
) -> list[Tensor | None]:
    """Return the gradients of the logits: None for those that are not wanted, or are zero.

    With p and q the first and second distribution of a KL, its gradient is
    ``p * ((log p - log q) - KL)`` w.r.t. the logits of p and ``q - p`` w.r.t. those of q. The
    gradient of the cross-entropy is ``p - onehot``.
    """
    if readable(grad):
        found = _gradients(grad, saved, wanted, detach_targets, masked=False)
        if not _has_nan(*(g for g in found if g is not None)):
            return found
    return _gradients(grad, saved, wanted, detach_targets, masked=True)


def _of_adversarial(grad: Tensor, saved: Saved) -> Tensor:
    """Return the gradient of ``[log p + w_1 KL_1 + w_2 KL_2] * grad``, in few passes.

    With p first in both divergences, this is
    ``p * (grad + sum_i grad w_i (log p - log q_i - KL_i))``.
    """
    log_p, *targets = saved.log_p.unbind()
    # [B, 1] each
    weights = [grad * (w[:, None] if isinstance(w, Tensor) else w) for w in saved.weights]
    constant, total = grad.clone(), weights[0] + weights[1]
    for weight, divergence in zip(weights, saved.divergences.unbind(), strict=True):
        constant.addcmul_(weight, divergence[:, None], value=-1)
    out = torch.addcmul(constant, log_p, total)
    for weight, log_q in zip(weights, targets, strict=True):
        out.addcmul_(log_q, weight, value=-1)
    return out.mul_(log_p.exp())


def _gradients(
    grad: Tensor, saved: Saved, wanted: Sequence[bool], detach_targets: bool, masked: bool
) -> list[Tensor | None]:
    log_p, p = saved.log_p.unbind(), dict[int, Tensor]()
    labels, valid = _valid(saved.labels, saved.log_p.shape[2])
    grad = _where(valid, grad)[:, None]
    found: list[Tensor | None] = [None] * 3
    alone = detach_targets and wanted[0] and not any(wanted[1:]) and not saved.ce_clean
    if alone and not masked and not any(saved.reverse):
        return [_of_adversarial(grad, saved).scatter_add_(1, labels[:, None], -grad), None, None]

    def probability(which: int) -> Tensor:
        if which not in p:
            p[which] = log_p[which].exp()
        return p[which]

    def add(which: int, x: Tensor, factor: Tensor) -> None:
        so_far = found[which]
        found[which] = x * factor if so_far is None else so_far.addcmul_(x, factor)

    rows = zip(saved.pairs, saved.divergences.unbind(), saved.weights, strict=True)
    for target, ((first, second), divergence, share) in enumerate(rows, 1):
        weight = grad * (share[:, None] if isinstance(share, Tensor) else share)  # [B, 1]
        taking = [i for i in (0, target) if wanted[i] and (i == 0 or not detach_targets)]
        if first in taking:
            slope = (log_p[first] - log_p[second]).sub_(divergence[:, None]).mul_(weight)
            if masked:
                slope.masked_fill_((probability(first) == 0) | (weight == 0), 0.0)
            add(first, slope, probability(first))
        if second in taking:
            apart = probability(second) - probability(first)
            add(second, apart.masked_fill_(weight == 0, 0.0) if masked else apart, weight)
    read = int(saved.ce_clean)
    if wanted[read]:
        add(read, probability(read), grad)
        found[read].scatter_add_(1, labels[:, None], -grad)  # type: ignore[union-attr]
    return found
