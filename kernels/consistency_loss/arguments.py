"""What the loss and its gradients take, in the order of the registered ops."""

from typing import NamedTuple

from torch import Tensor


class Loss(NamedTuple):
    """`eager.consistency_loss`.

    Attributes:
        adv, clean, frozen: logits ``[B, C]``, each of any floating dtype.
        labels: int64 ``[B]``.
        alphas, lams: ``[B]``, stand for ``alpha`` and ``lam`` where they are given.
        ce_clean: cross-entropy of ``clean``, not of ``adv``.
        train_reversed, frozen_reversed: the target's distribution comes first in the KL.
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
    """`eager.consistency_loss_backward`.

    Attributes:
        grad: of the loss, ``[B]``.
        statistics: `eager.consistency_loss`'s third result.
        detach_targets: no gradient goes through a KL into its target.
        wanted: whether there is to be a gradient in adversarial, clean and frozen logits.
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
