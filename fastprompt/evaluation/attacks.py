"""The attacks of an evaluation, by name."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._checks import unknown
from ..attacks import PGD, AttackResult, FeaturePGD, GradientHealth

KNOWN = ("clean", "pgd-20", "pgd-100", "feature-pgd-40")
_NAME = re.compile(r"(pgd|feature-pgd)-([1-9]\d*)")


@dataclass(frozen=True)
class Attack:
    """Attributes:

    name: as it was asked for.
    path: ``none``, ``adaptive`` (through the model that is judged) or ``transfer:image-encoder``
        (blind to the prompts).
    eps: radius in pixel units.
    settings: all that it takes to run it again.
    run: model, images, labels, indices to the result.
    """

    name: str
    path: str
    eps: float
    settings: dict[str, Any]
    run: Callable[[Any, Tensor, Tensor, Tensor], AttackResult]

    @property
    def per_model(self) -> bool:
        """Whether each model gets images of its own; a transfer attack makes one set for all."""
        return self.path == "adaptive"


def make_attack(name: str, eps: float, seed: int, stop_every: int | None = None) -> Attack:
    """The attack called ``name``: ``pgd-N`` or ``feature-pgd-N`` with N steps.

    ``pgd-N``: one random start, steps of eps/4, the last iterate counts; with ``stop_every`` every
    so many-th does. ``feature-pgd-N``: AdvPT's
    attack on the image encoder, steps of 1.25 eps/N.
    """
    found = _NAME.fullmatch(name)
    if not found:
        raise unknown("attack", name, [*KNOWN, "pgd-N", "feature-pgd-N"])
    kind, steps = found[1], int(found[2])
    if kind == "pgd":
        alpha = eps / 4 if eps else 1 / 255
        settings = {
            "steps": steps,
            "alpha": alpha,
            "random_start": True,
            "restarts": 1,
            "loss": "cross-entropy",
            "counts": "last iterate" if stop_every is None else f"every {stop_every} iterates",
            "seed": seed,
        }

        def adaptive(model: Any, images: Tensor, labels: Tensor, indices: Tensor) -> AttackResult:
            attack = PGD(model, eps, alpha, steps, seed=seed, stop_every=stop_every)
            return attack.run(images, labels, indices=indices)

        return Attack(name, "adaptive", eps, settings, adaptive)
    settings = {
        "steps": steps,
        "alpha": 1.25 * eps / steps,
        "start": "two-sided",
        "loss": "feature KL",
        "counts": "last iterate",
        "seed": seed,
    }

    def transfer(model: Any, images: Tensor, labels: Tensor, indices: Tensor) -> AttackResult:
        # the classifier's own tower is the faster one, but no learned prompt may stand in it
        blind = not getattr(model, "has_visual_prompts", True)
        encode = model.encode_image if blind else model.clip.encode_image
        return FeaturePGD(encode, eps, steps, seed=seed).run(images, indices=indices)

    return Attack(name, "transfer:image-encoder", eps, settings, transfer)


def clean() -> Attack:
    """No attack at all, with the same face."""

    def untouched(model: Any, images: Tensor, labels: Tensor, indices: Tensor) -> AttackResult:
        zero = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        return AttackResult(images, None, GradientHealth(zero, zero, 0))

    return Attack("clean", "none", 0.0, {}, untouched)
