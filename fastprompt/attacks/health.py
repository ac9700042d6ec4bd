"""Was there a gradient to follow? A sign step without one stands still and seems robust."""

from dataclasses import dataclass

import torch
from torch import Tensor

ZERO_SHARE = 0.5  # an image whose gradient was zero in more than this share of entries stood still
UNHEALTHY_SHARE = 0.01  # more such images than this, and the result is not to be trusted


@dataclass(frozen=True)
class GradientHealth:
    """Counts over all steps of an attack, for each image; on the attack's device until read.

    Attributes:
        zero: zero entries of the pixel gradient, int64 ``[B]``.
        nonfinite: NaN or infinite entries, int64 ``[B]``.
        entries: entries looked at, gradients * 3 * H * W: of each image, int64 ``[B]``, or one
            number for all.
    """

    zero: Tensor
    nonfinite: Tensor
    entries: Tensor | int

    @property
    def stalled(self) -> Tensor:
        """Images without a usable gradient, bool ``[B]``; none where no step was taken."""
        return (self.zero > ZERO_SHARE * self.entries) | (self.nonfinite > 0)

    @property
    def total(self) -> int:
        """Entries looked at, over all images."""
        return int(self._entries().sum())

    @property
    def zero_share(self) -> float:
        """Share of zero entries over all images."""
        return float(self.zero.sum()) / max(1, self.total)

    @property
    def nonfinite_share(self) -> float:
        """Share of NaN and infinite entries over all images."""
        return float(self.nonfinite.sum()) / max(1, self.total)

    @property
    def reasons(self) -> list[str]:
        """Why the attack's result is not to be trusted; empty if nothing is wrong."""
        stalled = int(self.stalled.sum())
        if stalled <= UNHEALTHY_SHARE * len(self.zero):
            return []
        return [
            f"no usable gradient for {stalled} of {len(self.zero)} images: "
            f"{self.zero_share:.1%} of the entries are zero, {self.nonfinite_share:.1%} not finite"
        ]

    @property
    def trusted(self) -> bool:
        """Whether nearly all images had a gradient to follow."""
        return not self.reasons

    @staticmethod
    def join(parts: "list[GradientHealth]") -> "GradientHealth":
        """The health of several batches under one attack."""
        same = len({p.entries if isinstance(p.entries, int) else None for p in parts}) == 1
        plain = same and isinstance(parts[0].entries, int)
        return GradientHealth(
            torch.cat([p.zero for p in parts]),
            torch.cat([p.nonfinite for p in parts]),
            parts[0].entries if plain else torch.cat([p._entries() for p in parts]),
        )

    def plus(self, other: "GradientHealth", rows: Tensor) -> "GradientHealth":
        """With what another attack counted on the images ``rows``."""
        return GradientHealth(
            self.zero.index_add(0, rows, other.zero),
            self.nonfinite.index_add(0, rows, other.nonfinite),
            self._entries().index_add(0, rows, other._entries()),
        )

    def _entries(self) -> Tensor:
        return torch.zeros_like(self.zero) + self.entries
