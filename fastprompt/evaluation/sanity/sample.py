"""The few images that the checks look at, and the model under them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..._utils.dtypes import at_least_float32
from ..._utils.types import Model
from ...attacks import PGD
from ...attacks.ascent import evaluating
from ...attacks.base import fooled

ASSUMED_EPS = 4 / 255  # where an evaluation has no radius of its own


@dataclass(frozen=True)
class Sample:
    """Attributes:

    model: pixels to logits.
    images, labels, indices: of the sample, on the model's device.
    eps: the largest radius of the evaluation.
    seed: of the attacks.
    batch: images in a pass.
    samples: passes averaged where the model is random.
    surrogates: models to take images from.
    """

    model: Model
    images: Tensor
    labels: Tensor
    indices: Tensor
    eps: float
    seed: int = 0
    batch: int = 128
    samples: int = 1
    surrogates: Mapping[str, Model] = field(default_factory=dict)

    @property
    def randomized(self) -> bool:
        """Whether the model says of itself that it is random."""
        return bool(getattr(self.model, "randomized", False))

    def logits(self, images: Tensor) -> Tensor:
        """In passes of at most ``batch`` images, without gradients."""
        with torch.no_grad(), evaluating(self.model):
            parts = [at_least_float32(self.model(part)) for part in images.split(self.batch)]
        return torch.cat(parts)

    @cached_property
    def clean(self) -> Tensor:
        """The clean images' logits."""
        return self.logits(self.images)

    @cached_property
    def right(self) -> Tensor:
        """Which images are classified rightly, bool ``[B]``."""
        return ~fooled(self.clean, self.labels) & ~self.clean.isnan().any(dim=1)

    @property
    def among_right(self) -> "Sample":
        """The images that are classified rightly: those that an attack has something to do on."""
        return self.of(self.right.nonzero().flatten().tolist())

    def of(self, places: Sequence[int]) -> "Sample":
        """Some of the images."""
        keep = torch.tensor(places, dtype=torch.long, device=self.images.device)
        images, labels, indices = (t[keep] for t in (self.images, self.labels, self.indices))
        return replace(self, images=images, labels=labels, indices=indices)

    def pgd(self, eps: float, steps: int, *, alpha: float | None = None, **options: Any) -> Tensor:
        """PGD's images: the last iterates, steps of eps/4."""
        attack = PGD(
            self.model,
            eps,
            (eps / 4 or 1 / 255) if alpha is None else alpha,
            steps,
            seed=self.seed,
            batch=self.batch,
            samples=self.samples,
            **options,
        )
        return attack.run(self.images, self.labels, indices=self.indices).images

    def stands(self, adv: Tensor) -> Tensor:
        """Which images are classified rightly when attacked so, bool ``[B]``."""
        logits = self.logits(adv)
        return ~fooled(logits, self.labels) & ~logits.isnan().any(dim=1)

    def standing(self, adv: Tensor) -> int:
        """How many they are."""
        return int(self.stands(adv).sum())

    def __len__(self) -> int:
        return len(self.images)
