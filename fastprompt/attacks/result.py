"""What an attack hands back."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .health import GradientHealth


@dataclass(frozen=True)
class AttackResult:
    """Attributes:

    images: adversarial images, float32 ``[B, 3, H, W]`` in [0, 1].
    success: images on which the attack reached its goal, bool ``[B]``; None for an attack that
        knows no labels.
    health: gradient health per image.
    fell_at: at which iterate the model was fooled, counted over the attempts, int64 ``[B]``: 0 is
        the start, -1 an image that stands. None where only the last iterate was judged.
    """

    images: Tensor
    success: Tensor | None
    health: GradientHealth
    fell_at: Tensor | None = None

    @property
    def trusted(self) -> bool:
        """False where the attack had no gradient to follow: see `GradientHealth.reasons`."""
        return self.health.trusted

    @staticmethod
    def join(parts: "Sequence[AttackResult]") -> "AttackResult":
        """The results of several batches under one attack."""

        def together(values: list[Tensor | None]) -> Tensor | None:
            known = [value for value in values if value is not None]
            return torch.cat(known) if len(known) == len(values) else None

        return AttackResult(
            torch.cat([p.images for p in parts]),
            together([p.success for p in parts]),
            GradientHealth.join([p.health for p in parts]),
            together([p.fell_at for p in parts]),
        )

    def followed_by(self, other: "AttackResult", rows: Tensor) -> "AttackResult":
        """This result, with that of a later attack on the images ``rows`` put in its place."""
        assert self.success is not None
        assert other.success is not None
        images, success = self.images.clone(), self.success.clone()
        images[rows], success[rows] = other.images, other.success
        return AttackResult(images, success, self.health.plus(other.health, rows))


def untouched(images: Tensor, success: Tensor | None = None) -> AttackResult:
    """The result of no attack at all."""
    zero = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    return AttackResult(images, success, GradientHealth(zero, zero, 0))
