"""A batch inside a tuning step, and the model's outputs from which a loss is computed."""

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
    """A batch, and the model's outputs from which a loss is computed.

    ``prepared`` and ``adv`` are computed on first access and cached. Each call of `clean`,
    `attacked` and `both` runs the model.

    Attributes:
        images: clean images, augmented, float32 ``[B, C, H, W]`` in [0, 1].
        labels, rows: class indices, and indices in the training set, int64 ``[B]``.
        progress: fraction of completed epochs, in [0, 1).
        draw, radius: arguments of the attack, see `OnlinePGD`.
        result: result of the attack; None until ``adv`` is accessed.
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
        """Class features and prompts that attack and loss share; None on the reference engine."""
        if self.model.engine == "reference":
            return None
        with torch.enable_grad():  # the loss needs the graph, even if first accessed under no_grad
            return self.model.prepare()

    @property
    def adv(self) -> Tensor:
        """Adversarial images for the current prompts."""
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
        """Run the model on the clean images; see `PromptedCLIP.see`."""
        return self.model.see(self.images, self.prepared, **options)

    def attacked(self, **options: Any) -> Seen:
        """Run the model on the adversarial images; see `PromptedCLIP.see`."""
        return self.model.see(self.adv, self.prepared, **options)

    def both(self, **options: Any) -> tuple[Seen, Seen]:
        """Run the model on clean and adversarial images together; see `PromptedCLIP.see_both`."""
        return self.model.see_both(self.images, self.adv, self.prepared, **options)
