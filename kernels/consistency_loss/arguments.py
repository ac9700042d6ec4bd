"""Arguments of the registered ops, in the order of their schemas."""

from typing import NamedTuple

from torch import Tensor


class Loss(NamedTuple):
    """Arguments of `eager.consistency_loss`.

    Attributes:
        adv, clean, frozen: logits ``[B, C]``, each of any floating dtype.
        labels: int64 ``[B]``.
        alphas, lams: ``[B]``; if given, they replace ``alpha`` and ``lam``.
        ce_clean: compute the cross-entropy from ``clean``, not from ``adv``.
        train_reversed, frozen_reversed: the target is the first distribution of the KL.
    """

    adv: Tensor
    clean: Tensor
    frozen: Tensor
    labels: Tensor
    alphas: Tensor | None
    lams: Tensor | None
    alpha: float
    lam: float
    ce_clean: bool
    train_reversed: bool
    frozen_reversed: bool


class LossBackward(NamedTuple):
    """Arguments of `eager.consistency_loss_backward`.

    Attributes:
        grad: gradient of the loss, ``[B]``.
        statistics: third output of `eager.consistency_loss`.
        detach_targets: do not propagate gradients through a KL to its target.
        wanted: whether to compute the gradients of the adversarial, clean and frozen logits.
    """

    grad: Tensor
    adv: Tensor
    clean: Tensor
    frozen: Tensor
    labels: Tensor
    statistics: Tensor
    ce_clean: bool
    train_reversed: bool
    frozen_reversed: bool
    detach_targets: bool
    wanted: list[bool]
