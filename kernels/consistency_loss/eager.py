"""Plain PyTorch implementation of CAPT's loss; runs on the CPU.

``KL(p|q) = sum p (log p - log q)``, with log-probabilities relative to the row's largest logit r:
``log p = (x - r) - log s``, ``s = sum exp(x - r)``. The forward saves ``r`` and ``log s``
separately for the backward, which is as accurate for logits of 1e4 as for logits of 1.
"""

import torch
from torch import Tensor

from .._dispatch import wide_dtype
from .arguments import Loss, LossBackward

# columns of the tensor saved for the backward: r of the adversarial, clean and frozen logits, log s
# of the three, the two divergences, and the weights of the divergences
STATISTICS = 10


def check_range(labels: Tensor, classes: int) -> None:
    """Check the label values; only on the CPU, where reading them needs no synchronization."""
    if labels.device.type != "cpu" or torch.compiler.is_compiling() or not labels.numel():
        return
    low, high = (int(v) for v in labels.aminmax())
    if low < 0 or high >= classes:
        raise ValueError(f"labels must be between 0 and {classes - 1}, got {low} to {high}")


def _divergence(weight: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return ``sum p (log p - log q)``, ``[B]``, with ``weight`` p; a p of 0 gives 0 for any q."""
    terms = (log_p - log_q).mul_(weight)
    return terms.masked_fill_(weight == 0, 0.0).sum(dim=1)


def _valid(labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return a mask of the labels in range, and the labels with 0 in place of the others."""
    valid = (labels >= 0) & (labels < classes)
    return valid, torch.where(valid, labels, 0)


def _cross_entropy(log_p: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy, which is NaN where the label is out of range."""
    valid, labels = _valid(labels, log_p.shape[1])
    chosen = log_p.gather(1, labels[:, None])[:, 0]
    return torch.where(valid, -chosen, torch.nan)


def _weighted(weight: Tensor, value: Tensor) -> Tensor:
    """Return ``weight * value``, and 0 for a weight of 0 even if the value is infinite."""
    return torch.where(weight == 0, 0.0, weight * value)


def _per_sample(value: float, values: Tensor | None, like: Tensor) -> Tensor:
    return torch.full_like(like, value) if values is None else values.to(like.dtype)


def consistency_loss(given: Loss) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``CE + lam * ((1 - alpha) * L_train + alpha * L_frozen)`` of each sample.

    Returns:
        The loss ``[B]``, its terms ``[B, 3]``, and the statistics saved for the backward.
    """
    adv, clean, frozen, labels = given[:4]
    check_range(labels, adv.shape[1])
    dtype = wide_dtype(adv, clean, frozen)
    log_p = [t.to(dtype).log_softmax(dim=1) for t in (adv, clean, frozen)]
    cross_entropy = _cross_entropy(log_p[int(given.ce_clean)], labels)
    reverse = given.train_reversed, given.frozen_reversed
    weight = log_p[0].exp() if not all(reverse) else None
    divergences = []
    for target, swapped in zip((1, 2), reverse, strict=True):
        if swapped or weight is None:
            divergences.append(_divergence(log_p[target].exp(), log_p[target], log_p[0]))
        else:
            divergences.append(_divergence(weight, log_p[0], log_p[target]))
    share = _per_sample(given.alpha, given.alphas, cross_entropy)
    scale = _per_sample(given.lam, given.lams, cross_entropy)
    weights = scale * (1 - share), scale * share
    # rounding can make a divergence negative
    terms = [cross_entropy, *(d.clamp(min=0) for d in divergences)]
    loss = cross_entropy + _weighted(weights[0], terms[1]) + _weighted(weights[1], terms[2])
    references = [t.amax(dim=1).to(dtype) for t in (adv, clean, frozen)]
    # the largest log-probability is -log s
    statistics = [*references, *(-t.amax(dim=1) for t in log_p), *divergences, *weights]
    return loss, torch.stack(terms, dim=1), torch.stack(statistics, dim=1)


def _in_first(p: Tensor, log_p: Tensor, log_q: Tensor, kl: Tensor, weight: Tensor) -> Tensor:
    """Return ``weight * p * ((log p - log q) - kl)``: a KL's gradient w.r.t. the logits of p."""
    found = (log_p - log_q).sub_(kl).mul_(p).mul_(weight)
    return found.masked_fill_((p == 0) | (weight == 0), 0.0)


def _in_second(p: Tensor, q: Tensor, weight: Tensor) -> Tensor:
    """Return ``weight * (q - p)``: a KL's gradient w.r.t. the logits of q."""
    return (q - p).mul_(weight).masked_fill_(weight == 0, 0.0)


def consistency_loss_backward(given: LossBackward) -> list[Tensor]:
    """Return the ``wanted`` gradients of the adversarial, clean and frozen logits.

    With p and q the first and second distribution of a KL, its gradient is
    ``p * ((log p - log q) - KL)`` w.r.t. the logits of p and ``q - p`` w.r.t. those of q. The
    gradient of the cross-entropy is ``p - onehot``.
    """
    logits = (given.adv, given.clean, given.frozen)
    labels, statistics, wanted = given.labels, given.statistics, given.wanted
    columns = statistics[:, :, None].unbind(dim=1)  # [B, 1] each
    log_p = [
        t.to(statistics.dtype).sub(columns[i]).sub_(columns[3 + i]) for i, t in enumerate(logits)
    ]
    made: dict[int, Tensor] = {}
    valid, chosen = _valid(labels, given.adv.shape[1])
    grad = torch.where(valid, given.grad, torch.nan)[:, None]
    found: list[Tensor | None] = [None, None, None]

    def p(which: int) -> Tensor:
        if which not in made:
            made[which] = log_p[which].exp()
        return made[which]

    def add(which: int, part: Tensor) -> None:
        so_far = found[which]
        found[which] = part if so_far is None else so_far.add_(part)

    for target, swapped in ((1, given.train_reversed), (2, given.frozen_reversed)):
        weight, kl = grad * columns[7 + target], columns[5 + target]
        first, second = (target, 0) if swapped else (0, target)
        taking = [i for i in (0, target) if wanted[i] and (i == 0 or not given.detach_targets)]
        if first in taking:
            add(first, _in_first(p(first), log_p[first], log_p[second], kl, weight))
        if second in taking:
            add(second, _in_second(p(first), p(second), weight))
    read = int(given.ce_clean)
    if wanted[read]:
        rows = torch.arange(len(labels), device=labels.device)
        slope = p(read) * grad
        slope[rows, chosen] -= grad[:, 0]
        add(read, slope)
    return [
        torch.zeros_like(t, memory_format=torch.contiguous_format)
        if g is None
        else g.to(t.dtype).contiguous()
        for g, t, want in zip(found, logits, wanted, strict=True)
        if want
    ]
