"""Result of an attack."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .health import GradientHealth


@dataclass(frozen=True)
class AttackResult:
    """Result of an attack on a batch.

    Attributes:
        images: adversarial images, float32 ``[B, C, H, W]`` in [0, 1].
        success: whether the attack succeeded on each image, bool ``[B]``; None for an attack
            without labels.
        health: gradient health of each image.
        fell_at: index of the iterate that fooled the model, counted over all attempts, int64
            ``[B]``; 0 is the start, -1 means not fooled. None if only the final images
            were evaluated.
    """

    images: Tensor
    success: Tensor | None
    health: GradientHealth
    fell_at: Tensor | None = None

    @property
    def trusted(self) -> bool:
        """Whether the attack had usable gradients; see `GradientHealth.reasons`."""
        return self.health.trusted

    @staticmethod
    def join(parts: "Sequence[AttackResult]") -> "AttackResult":
        """Concatenate the results of several batches under the same attack."""

        def together(values: list[Tensor | None]) -> Tensor | None:
            known = [value for value in values if value is not None]
            return torch.cat(known) if len(known) == len(values) else None

        return AttackResult(
            torch.cat([p.images for p in parts]),
            together([p.success for p in parts]),
            GradientHealth.join([p.health for p in parts]),
            together([p.fell_at for p in parts]),
        )

    def of(self, rows: Tensor) -> "AttackResult":
        """Return the result of the images ``rows``."""
        success, fell_at = (None if t is None else t[rows] for t in (self.success, self.fell_at))
        return AttackResult(self.images[rows], success, self.health.of(rows), fell_at)

    def followed_by(self, other: "AttackResult", rows: Tensor) -> "AttackResult":
        """Return this result with the images ``rows`` replaced by those of a later attack."""
        assert self.success is not None
        assert other.success is not None
        images, success = self.images.clone(), self.success.clone()
        images[rows], success[rows] = other.images, other.success
        return AttackResult(images, success, self.health.plus(other.health, rows))


def untouched(images: Tensor, success: Tensor | None = None) -> AttackResult:
    """Return a result with no gradients counted."""
    zero = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    return AttackResult(images, success, GradientHealth(zero, zero, 0))
