"""A batch inside a tuning step, and what a loss is made of."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..attacks.result import AttackResult
from ..model.outputs import Prepared, Seen
from ..model.prompted import PromptedCLIP
from .online_pgd import OnlinePGD


@dataclasses.dataclass
class Step:
    """A batch, and what a loss is made of.

    ``prepared`` and ``adv`` are made when they are first asked for, and once; `clean`, `attacked`
    and `both` are a pass each.

    Attributes:
        images: clean, float32 ``[B, 3, S, S]`` in [0, 1], augmented.
        labels, rows: classes, and places in the training set, int64 ``[B]``.
        progress: share of the epochs that are done, in [0, 1).
        draw, radius: of the attack, see `OnlinePGD`.
        result: of the attack; None as long as ``adv`` was not asked for.
    """

    model: PromptedCLIP
    attack: OnlinePGD
    images: Tensor
    labels: Tensor
    rows: Tensor
    progress: float
    draw: int
    radius: Tensor | None
    result: AttackResult | None = None

    @cached_property
    def prepared(self) -> Prepared | None:
        """What attack and loss share of the prompts; on the reference engine they share nothing."""
        if self.model.engine == "reference":
            return None
        with torch.enable_grad():  # whoever asks first: the loss needs its graph
            return self.model.prepare()

    @property
    def adv(self) -> Tensor:
        """The images, attacked through the prompts as they are now."""
        if self.result is None:
            self.result = self.attack(
                self.images,
                self.labels,
                self.rows,
                self.prepared,
                draw=self.draw,
                radius=self.radius,
            )
        return self.result.images

    def clean(self, **options: Any) -> Seen:
        """The model on the clean images, see `PromptedCLIP.see`."""
        return self.model.see(self.images, self.prepared, **options)

    def attacked(self, **options: Any) -> Seen:
        """The model on the adversarial images."""
        return self.model.see(self.adv, self.prepared, **options)

    def both(self, **options: Any) -> tuple[Seen, Seen]:
        """The model on the clean and on the adversarial images, in one pass."""
        return self.model.see_both(self.images, self.adv, self.prepared, **options)
