"""Random starts that depend on the image alone, not on the batch it is attacked in."""

import torch
from torch import Tensor

from ..kernels import random_start as start_from
from ..kernels.random_start import Sides

__all__ = ["Sides", "random_start", "start_key"]


def start_key(seed: int, restart: int, device: torch.device) -> Tensor:
    """Int64 ``[2]`` on the device, filled there: a copy from the host would wait for it."""
    key = torch.empty(2, dtype=torch.int64, device=device)
    key[0] = (seed + 2**63) % 2**64 - 2**63  # any 64 bits, as a signed number
    key[1] = restart
    return key


def random_start(
    x: Tensor, eps: float | Tensor, indices: Tensor, *, seed: int, restart: int = 0, sides: Sides
) -> Tensor:
    """``x`` plus uniform noise in the eps-ball, clipped to [0, 1].

    Args:
        x: clean images ``[B, C, H, W]``.
        eps: one radius, or one for each image, ``[B]``.
        indices: the images' indices in their data set, int64 ``[B]``.
        sides: ``"two-sided"`` draws from [-eps, eps], ``"one-sided"`` from [0, eps].
    """
    key = start_key(seed, restart, x.device)
    return start_from(x, indices.to(x.device, torch.int64), key, eps=eps, sides=sides)
