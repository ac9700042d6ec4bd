"""Reference implementation of CAPT's loss with torch's functions, for tests and benchmarks."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._dispatch import wide_dtype


def consistency_loss(
    adv: Tensor,
    clean: Tensor,
    frozen: Tensor,
    labels: Tensor,
    alpha: float | Tensor,
    lam: float | Tensor = 1.0,
    ce: str = "adv",
    train_kl: str = "adv||target",
    frozen_kl: str = "adv||target",
    detach_targets: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return ``CE + lam * ((1 - alpha) * KL_train + alpha * KL_frozen)`` per sample, and the terms.

    The loss of Consistency-guided Adversarial Prompt Tuning (CAPT), with
    ``CE = -log softmax(adv)[label]`` or that of ``clean``. ``KL_train`` is the divergence between
    the predictions on adversarial and clean images, ``KL_frozen`` that to the frozen model's:
    ``KL(p || q) = sum p (log p - log q)``, with the adversarial prediction as p, or as q for
    ``"target||adv"``.

    The gradient of a KL is ``p * ((log p - log q) - KL)`` w.r.t. the logits of p and ``q - p``
    w.r.t. those of q; the gradient of the cross-entropy is ``p - onehot``.

    Args:
        adv, clean, frozen: logits ``[B, C]``, finite.
        labels: int64 ``[B]``.
        alpha, lam: numbers or tensors ``[B]``.
        detach_targets: do not propagate gradients through a KL to the clean and frozen logits.

    Returns:
        ``[B]`` and ``[B, 3]``, at least float32.
    """
    adv, clean, frozen = (t.to(wide_dtype(t)) for t in (adv, clean, frozen))
    log_p = adv.log_softmax(dim=1)

    def divergence(target: Tensor, direction: str) -> Tensor:
        log_q = (target.detach() if detach_targets else target).log_softmax(dim=1)
        first, second = (log_p, log_q) if direction == "adv||target" else (log_q, log_p)
        return (first.exp() * (first - second)).sum(dim=1)

    entropy = F.cross_entropy(adv if ce == "adv" else clean, labels, reduction="none")
    train, far = divergence(clean, train_kl), divergence(frozen, frozen_kl)
    loss = entropy + lam * ((1 - alpha) * train + alpha * far)
    return loss, torch.stack([entropy, train, far], dim=1)
