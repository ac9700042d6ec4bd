"""Gradient health: if gradients are zero, sign steps do not move and the model seems robust."""

from dataclasses import dataclass

import torch
from torch import Tensor

ZERO_SHARE = 0.5  # an image with a larger share of zero gradient entries is stalled
UNHEALTHY_SHARE = 0.01  # a result with a larger share of stalled images is not trusted


@dataclass(frozen=True)
class GradientHealth:
    """Gradient counts of each image over all steps of an attack, kept on the attack's device.

    Attributes:
        zero: number of zero entries of the pixel gradient, int64 ``[B]``.
        nonfinite: number of NaN or infinite entries, int64 ``[B]``.
        entries: number of entries of an image's gradients, ``gradients * C * H * W``: int64
            ``[B]``, or an int if it is equal for all images.
    """

    zero: Tensor
    nonfinite: Tensor
    entries: Tensor | int

    @property
    def stalled(self) -> Tensor:
        """Images without a usable gradient, bool ``[B]``; False if no step was taken."""
        return (self.zero > ZERO_SHARE * self.entries) | (self.nonfinite > 0)

    @property
    def total(self) -> int:
        """Total number of entries counted."""
        return int(self._entries().sum())

    @property
    def zero_share(self) -> float:
        """Share of zero entries, over all images."""
        return float(self.zero.sum()) / max(1, self.total)

    @property
    def nonfinite_share(self) -> float:
        """Share of NaN and infinite entries, over all images."""
        return float(self.nonfinite.sum()) / max(1, self.total)

    @property
    def reasons(self) -> list[str]:
        """Reasons not to trust the attack's result; empty if there are none."""
        stalled = int(self.stalled.sum())
        if stalled <= UNHEALTHY_SHARE * len(self.zero):
            return []
        return [
            f"no usable gradient for {stalled} of {len(self.zero)} images: "
            f"{self.zero_share:.1%} of the entries are zero, {self.nonfinite_share:.1%} not finite"
        ]

    @property
    def trusted(self) -> bool:
        """Whether nearly all images had a usable gradient."""
        return not self.reasons

    @staticmethod
    def join(parts: "list[GradientHealth]") -> "GradientHealth":
        """Concatenate the health of several batches under the same attack."""
        same = len({p.entries if isinstance(p.entries, int) else None for p in parts}) == 1
        plain = same and isinstance(parts[0].entries, int)
        return GradientHealth(
            torch.cat([p.zero for p in parts]),
            torch.cat([p.nonfinite for p in parts]),
            parts[0].entries if plain else torch.cat([p._entries() for p in parts]),
        )

    def of(self, rows: Tensor) -> "GradientHealth":
        """Return the counts of the images ``rows``."""
        entries = self.entries if isinstance(self.entries, int) else self.entries[rows]
        return GradientHealth(self.zero[rows], self.nonfinite[rows], entries)

    def plus(self, other: "GradientHealth", rows: Tensor) -> "GradientHealth":
        """Return these counts plus those of another attack on the images ``rows``."""
        return GradientHealth(
            self.zero.index_add(0, rows, other.zero),
            self.nonfinite.index_add(0, rows, other.nonfinite),
            self._entries().index_add(0, rows, other._entries()),
        )

    def _entries(self) -> Tensor:
        return torch.zeros_like(self.zero) + self.entries
