"""The model and the images that the checks use."""

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

ASSUMED_EPS = 4 / 255  # if the evaluation has no radius above 0


@dataclass(frozen=True)
class Sample:
    """A model and the images on which it is checked.

    Attributes:
        model: maps pixels to logits.
        images, labels, indices: the sample, on the model's device.
        eps: the largest radius of the evaluation.
        seed: seed of the attacks.
        batch: images per pass.
        samples: passes averaged in each gradient, for randomized models.
        surrogates: models on which transfer attacks are crafted.
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
        """Whether the model declares itself random."""
        return bool(getattr(self.model, "randomized", False))

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits, in passes of at most ``batch`` images, without gradients."""
        with torch.no_grad(), evaluating(self.model):
            parts = [at_least_float32(self.model(part)) for part in images.split(self.batch)]
        return torch.cat(parts)

    @cached_property
    def clean(self) -> Tensor:
        """Logits of the clean images."""
        return self.logits(self.images)

    @cached_property
    def right(self) -> Tensor:
        """Which clean images are classified correctly, bool ``[B]``."""
        return ~fooled(self.clean, self.labels) & ~self.clean.isnan().any(dim=1)

    @property
    def among_right(self) -> "Sample":
        """The correctly classified images, since only those can be attacked."""
        return self.of(self.right.nonzero().flatten().tolist())

    def of(self, places: Sequence[int]) -> "Sample":
        """Return a sample of the images at ``places``."""
        keep = torch.tensor(places, dtype=torch.long, device=self.images.device)
        images, labels, indices = (t[keep] for t in (self.images, self.labels, self.indices))
        return replace(self, images=images, labels=labels, indices=indices)

    def pgd(self, eps: float, steps: int, *, alpha: float | None = None, **options: Any) -> Tensor:
        """Return PGD's images (last iterates); the default step size is eps/4."""
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
        """Return which adversarial images are still classified correctly, bool ``[B]``."""
        logits = self.logits(adv)
        return ~fooled(logits, self.labels) & ~logits.isnan().any(dim=1)

    def standing(self, adv: Tensor) -> int:
        """Count the adversarial images that are still classified correctly."""
        return int(self.stands(adv).sum())

    def __len__(self) -> int:
        return len(self.images)
