"""Random starts that depend on the image's index but not on its batch."""

import math

import torch
from torch import Tensor

from ..kernels import random_start as start_from
from ..kernels.random_start import Sides

__all__ = ["Sides", "random_start", "start_key"]


def start_key(seed: int, restart: int, device: torch.device) -> Tensor:
    """Return (seed, restart) as int64 ``[2]``, without a copy from the host."""
    key = torch.empty(2, dtype=torch.int64, device=device)
    # `key[0] = seed` would copy a tensor from the host, and wait for the device
    key[:1].fill_((seed + 2**63) % 2**64 - 2**63)  # wrap to a signed 64-bit integer
    key[1:].fill_(restart)
    return key


def random_start(
    x: Tensor,
    eps: float | Tensor,
    indices: Tensor,
    *,
    seed: int,
    restart: int = 0,
    sides: Sides,
    clamp: bool = True,
) -> Tensor:
    """Return ``x`` plus uniform noise in the eps-ball, clamped to [0, 1] unless ``clamp`` is False.

    Args:
        x: clean images ``[B, C, H, W]``.
        eps: radius, a number or one per image, ``[B]``.
        indices: indices of the images in their data set, int64 ``[B]``.
        sides: ``"two-sided"`` draws from [-eps, eps], ``"one-sided"`` from [0, eps].
    """
    key = start_key(seed, restart, x.device)
    lo, hi = (0.0, 1.0) if clamp else (-math.inf, math.inf)
    indices = indices.to(x.device, torch.int64)
    return start_from(x, indices, key, eps=eps, sides=sides, lo=lo, hi=hi)
