"""The formulas in plain tensor code: what runs on the CPU.

Logits are read relative to their row's largest one: with ``r`` that one, ``s = sum exp(x - r)``::

    log p   = (x - r_x) - log s_x
    KL(p|q) = E_p[(x - r_x) - (y - r_y)] - log(s_x / s_y)

which is as exact for logits of 1e4 as for logits of 1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# columns of what the backward formula reads: the references of adversarial, clean and frozen
# logits, the logarithms of their sums, the two divergences, and the weights of these
STATISTICS = 10


def wide_dtype(*logits: Tensor) -> torch.dtype:
    """Float32, or float64 where one of them is."""
    dtype = torch.float32
    for tensor in logits:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def check_range(labels: Tensor, classes: int) -> None:
    """On the CPU alone, where a look at the values costs nothing."""
    if labels.device.type != "cpu" or torch.compiler.is_compiling() or not labels.numel():
        return
    low, high = (int(v) for v in labels.aminmax())
    if low < 0 or high >= classes:
        raise ValueError(f"labels must be between 0 and {classes - 1}, got {low} to {high}")


def _shifted(logits: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The reference ``[B]``, logits relative to it ``[B, C]``, the sum of their exponentials."""
    logits = logits.to(dtype)
    largest = logits.amax(dim=1)
    reference = torch.where(largest == -torch.inf, 0.0, largest)
    shifted = logits - reference[:, None]
    return reference, shifted, shifted.exp().sum(dim=1)


def _divergence(first: Tensor, first_sum: Tensor, second: Tensor, second_sum: Tensor) -> Tensor:
    """KL of the first distribution from the second, ``[B]``, from shifted logits and their sums."""
    weight = first.exp()
    terms = torch.where(weight == 0, 0.0, weight * (first - second))
    return terms.sum(dim=1) / first_sum - (first_sum / second_sum).log()


def _cross_entropy(shifted: Tensor, total: Tensor, labels: Tensor) -> Tensor:
    """NaN where the label is no class."""
    valid = (labels >= 0) & (labels < shifted.shape[1])
    chosen = shifted.gather(1, torch.where(valid, labels, 0)[:, None])[:, 0]
    return torch.where(valid, total.log() - chosen, torch.nan)


def _weighted(weight: Tensor, value: Tensor) -> Tensor:
    """A weight of 0 drops what may be infinite."""
    return torch.where(weight == 0, 0.0, weight * value)


def _per_sample(value: float, values: Tensor | None, like: Tensor) -> Tensor:
    return torch.full_like(like, value) if values is None else values.to(like.dtype)


def consistency_loss(
    adv: Tensor,
    clean: Tensor,
    frozen: Tensor,
    labels: Tensor,
    alphas: Tensor | None,
    lams: Tensor | None,
    alpha: float,
    lam: float,
    ce_clean: bool,
    train_reversed: bool,
    frozen_reversed: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``CE + lam * ((1 - alpha) * L_train + alpha * L_frozen)`` of each sample.

    Args:
        adv, clean, frozen: logits ``[B, C]``, each of any floating dtype.
        labels: int64 ``[B]``.
        alphas, lams: ``[B]``, stand for ``alpha`` and ``lam`` where they are given.
        ce_clean: cross-entropy of ``clean``, not of ``adv``.
        train_reversed, frozen_reversed: the target's distribution comes first in the KL.

    Returns:
        The loss ``[B]``, its terms ``[B, 3]``, and what the backward formula reads.
    """
    check_range(labels, adv.shape[1])
    dtype = wide_dtype(adv, clean, frozen)
    rows = [_shifted(t, dtype) for t in (adv, clean, frozen)]
    references, shifted, sums = zip(*rows, strict=True)
    read = int(ce_clean)
    cross_entropy = _cross_entropy(shifted[read], sums[read], labels)
    divergences = []
    for target, swapped in ((1, train_reversed), (2, frozen_reversed)):
        first, second = (target, 0) if swapped else (0, target)
        divergences.append(_divergence(shifted[first], sums[first], shifted[second], sums[second]))
    share, scale = _per_sample(alpha, alphas, sums[0]), _per_sample(lam, lams, sums[0])
    weights = scale * (1 - share), scale * share
    # rounding may take a divergence below 0
    terms = [cross_entropy, *(d.clamp(min=0) for d in divergences)]
    loss = cross_entropy + _weighted(weights[0], terms[1]) + _weighted(weights[1], terms[2])
    statistics = [*references, *(s.log() for s in sums), *divergences, *weights]
    return loss, torch.stack(terms, dim=1), torch.stack(statistics, dim=1)


def _gradients(first: Tensor, second: Tensor, divergence: Tensor) -> tuple[Tensor, Tensor]:
    """Of a KL in the logits of its first and its second distribution, from log-probabilities."""
    p, q = first.exp(), second.exp()
    in_first = torch.where(p == 0, 0.0, p * ((first - second) - divergence[:, None]))
    return in_first, q - p


def _one_hot(labels: Tensor, classes: int) -> Tensor:
    return labels[:, None] == torch.arange(classes, device=labels.device)


def consistency_loss_backward(
    grad: Tensor,
    adv: Tensor,
    clean: Tensor,
    frozen: Tensor,
    labels: Tensor,
    statistics: Tensor,
    ce_clean: bool,
    train_reversed: bool,
    frozen_reversed: bool,
    detach_targets: bool,
    wanted: Sequence[bool],
) -> list[Tensor]:
    """Gradients in the logits that are ``wanted``, of adversarial, clean and frozen ones.

    With p, q the first and second distribution of a KL they are ``p * ((log p - log q) - KL)``
    in the logits of p and ``q - p`` in those of q; of the cross-entropy ``p - onehot``.
    """
    logits = (adv, clean, frozen)
    columns = statistics.unbind(dim=1)
    log_p = [
        (t.to(statistics.dtype) - columns[i][:, None]) - columns[3 + i][:, None]
        for i, t in enumerate(logits)
    ]
    valid = (labels >= 0) & (labels < adv.shape[1])
    grad = torch.where(valid, grad, torch.nan)
    found = [torch.zeros_like(t) for t in log_p]
    for target, swapped in ((1, train_reversed), (2, frozen_reversed)):
        weight = (grad * columns[7 + target])[:, None]
        pair = (target, 0) if swapped else (0, target)
        parts = _gradients(log_p[pair[0]], log_p[pair[1]], columns[5 + target])
        for which, part in zip(pair, parts, strict=True):
            if which == 0 or not detach_targets:
                found[which] += _weighted(weight, part)
    hot = _one_hot(labels, adv.shape[1])
    read = int(ce_clean)
    found[read] += grad[:, None] * (log_p[read].exp() - hot.to(grad.dtype))
    triples = zip(found, logits, wanted, strict=True)
    return [g.to(t.dtype).contiguous() for g, t, want in triples if want]
