"""What an attack hands back."""

from dataclasses import dataclass

from torch import Tensor

from .health import GradientHealth


@dataclass(frozen=True)
class AttackResult:
    """Attributes:

    images: adversarial images, float32 ``[B, 3, H, W]`` in [0, 1].
    success: images on which the attack reached its goal, bool ``[B]``; None for an attack that
        knows no labels.
    health: gradient health per image.
    """

    images: Tensor
    success: Tensor | None
    health: GradientHealth

    @property
    def trusted(self) -> bool:
        """False where the attack had no gradient to follow: see `GradientHealth.reasons`."""
        return self.health.trusted
