"""The losses that the attack in a tuning step may maximize, and the classes that they target."""

from __future__ import annotations

from typing import Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor

from .._utils.checks import check_choice
from .._utils.seeds import stream
from ..attacks.apgd import per_image_loss
from ..attacks.autoattack import TARGETS
from ..attacks.base import wrong_order
from ..attacks.losses import dlr, kl_divergence, margin
from ..attacks.random_start import random_start

AttackLoss = Literal["ce", "margin", "dlr", "targeted-dlr", "kl", "mixed"]

MIXED: tuple[AttackLoss, ...] = ("ce", "margin", "dlr", "targeted-dlr")
_LEAST = {"ce": 1, "margin": 2, "kl": 2, "dlr": 3, "targeted-dlr": 4, "mixed": 4}  # classes


class Goal(NamedTuple):
    """What an attack's loss takes besides the logits, with one row per image.

    Attributes:
        labels: the true classes, int64 ``[B]``.
        targets: wrong classes of ``"targeted-dlr"``, int64 ``[B]``.
        kinds: positions in `MIXED` of the images' losses, int64 ``[B]``.
        clean: logits of the clean images for ``"kl"``, ``[B, C]``.
    """

    labels: Tensor
    targets: Tensor | None = None
    kinds: Tensor | None = None
    clean: Tensor | None = None


def check_attack_loss(name: str, *, random_start: bool) -> AttackLoss:
    """Return the name of a loss.

    Raises:
        ValueError: the name is unknown, or the loss has no gradient at the attack's start.
    """
    check_choice(name, "attack_loss", get_args(AttackLoss))
    if name == "kl" and not random_start:
        raise ValueError(
            "attack_loss needs random_start=True with 'kl', whose gradient is zero at the clean "
            "image; choose 'ce' to start there"
        )
    return cast(AttackLoss, name)


def check_enough_classes(name: AttackLoss, classes: int) -> None:
    """Raise ValueError if a loss is not defined for so few classes."""
    least = _LEAST[name]
    if classes < least:
        fit = " or ".join(repr(loss) for loss, n in _LEAST.items() if n <= classes)
        raise ValueError(
            f"attack_loss needs at least {least} classes with {name!r}, got {classes}: use {fit}"
        )


def needs_clean_logits(name: AttackLoss) -> bool:
    """Return whether a loss or its targets depend on the clean images' logits."""
    return name in ("targeted-dlr", "kl", "mixed")


def goal_of(
    name: AttackLoss,
    labels: Tensor,
    indices: Tensor,
    clean: Tensor | None,
    *,
    seed: int,
    draw: int,
) -> Goal:
    """Return what a loss takes besides the logits.

    The target of an image is drawn from the wrong classes with the largest clean logits, as many as
    APGD-T attacks in turn (9, Croce and Hein, ICML 2020), but one per image, so that an attack
    costs no more. The draws of an image depend only on (seed, image index, draw).

    Args:
        labels, indices: int64 ``[B]``.
        clean: logits of the clean images, ``[B, C]``, if the loss needs them.
    """
    if clean is None or name == "kl":
        return Goal(labels, clean=clean)
    count = min(TARGETS, clean.shape[1] - 1)
    rank, kind = _draws(indices, (count, len(MIXED)), clean.device, seed, draw)
    targets = wrong_order(clean, labels)[:, :count].gather(1, rank[:, None]).squeeze(1)
    return Goal(labels, targets, kind if name == "mixed" else None)


def _draws(
    indices: Tensor, below: tuple[int, ...], device: torch.device, seed: int, draw: int
) -> list[Tensor]:
    """Draw integers uniformly from [0, n), for each n of ``below`` one per image, int64 ``[B]``."""
    unit = random_start(  # numbers in [0, 1], generated on the device
        torch.zeros(len(indices), len(below), dtype=torch.float32, device=device),
        1.0,
        indices,
        seed=stream(seed, "attack loss", 0),  # others than those of the attack's start
        restart=draw,
        sides="one-sided",
        clamp=False,
    )
    return [(unit[:, i] * n).long().clamp(max=n - 1) for i, n in enumerate(below)]


def attack_losses(name: AttackLoss, logits: Tensor, goal: Goal) -> Tensor:
    """Compute the loss of each image to maximize, ``[B]``, from logits ``[B, C]``."""
    if name == "kl":
        assert goal.clean is not None
        return kl_divergence(goal.clean, logits)
    if name == "mixed":
        assert goal.kinds is not None
        each = torch.stack([attack_losses(kind, logits, goal) for kind in MIXED])  # [4, B]
        return each.gather(0, goal.kinds[None]).squeeze(0)
    if name == "dlr":
        return _dlr(logits, goal.labels)
    targets = goal.targets if name == "targeted-dlr" else None
    return per_image_loss(name, logits, goal.labels, targets)


def _dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute DLR, or the margin where the true class ranks third.

    There, DLR is 1 whatever the logits, and its gradient consists of rounding errors. APGD stops at
    such an image, which is misclassified; tuning attacks it.
    """
    third = (logits > logits.gather(1, labels[:, None])).sum(dim=1) == 2
    return torch.where(third, margin(logits, labels), dlr(logits, labels))
