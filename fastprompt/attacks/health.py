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
        entries: entries looked at for each image: steps * restarts * 3 * H * W.
    """

    zero: Tensor
    nonfinite: Tensor
    entries: int

    @property
    def stalled(self) -> Tensor:
        """Images without a usable gradient, bool ``[B]``; none where no step was taken."""
        if not self.entries:
            return torch.zeros_like(self.zero, dtype=torch.bool)
        return (self.zero > ZERO_SHARE * self.entries) | (self.nonfinite > 0)

    @property
    def zero_share(self) -> float:
        """Share of zero entries over all images."""
        return float(self.zero.sum()) / max(1, self.entries * len(self.zero))

    @property
    def nonfinite_share(self) -> float:
        """Share of NaN and infinite entries over all images."""
        return float(self.nonfinite.sum()) / max(1, self.entries * len(self.zero))

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
        return GradientHealth(
            torch.cat([p.zero for p in parts]),
            torch.cat([p.nonfinite for p in parts]),
            parts[0].entries,
        )
