"""Random starts that depend on the image alone, not on the batch it is attacked in.

Philox-4x32 with ten rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011),
in plain integer tensor code: the same bits on every device.
"""

import math
from typing import Literal

import torch
from torch import Tensor

Sides = Literal["two-sided", "one-sided"]

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def _multiply(a: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of the product; int64 wraps, the mask takes the sign bits off."""
    product = a * constant
    return (product >> 32) & _LOW, product & _LOW


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> tuple[Tensor, ...]:
    """Four random 32-bit words for each counter of four, all int64 tensors that broadcast."""
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = seed & _LOW, (seed >> 32) & _LOW
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def _to_unit(word: Tensor) -> Tensor:
    """A 32-bit word as float32 in [0, 1), by 31 bits, as Triton's ``uint_to_uniform_float``."""
    signed = torch.where(word > 0x7FFFFFFF, word - (1 << 32), word)
    folded = torch.where(signed < 0, -signed - 1, signed)
    return folded.to(torch.float32) * 4.6566127342e-10


def uniform(indices: Tensor, n: int, *, seed: int, restart: int = 0) -> Tensor:
    """Uniform in [0, 1], float32 ``[B, n]``, row b a function of (seed, indices[b], restart)."""
    blocks = torch.arange((n + 3) // 4, device=indices.device)
    image = indices.to(torch.int64)[:, None]
    words = philox(
        (blocks[None, :], torch.full_like(image, restart), image & _LOW, (image >> 32) & _LOW),
        seed,
    )
    return _to_unit(torch.stack(words, dim=2)).flatten(1)[:, :n]


def random_start(
    x: Tensor, eps: float, indices: Tensor, *, seed: int, restart: int = 0, sides: Sides
) -> Tensor:
    """``x`` plus uniform noise in the eps-ball, clipped to [0, 1].

    Args:
        x: clean images ``[B, C, H, W]``.
        indices: the images' indices in their data set, int64 ``[B]``.
        sides: ``"two-sided"`` draws from [-eps, eps], ``"one-sided"`` from [0, eps].
    """
    unit = (
        uniform(indices, math.prod(x.shape[1:]), seed=seed, restart=restart)
        .view(x.shape)
        .to(x.dtype)
    )
    noise = unit * eps if sides == "one-sided" else (unit * 2 - 1) * eps
    return (x + noise).clamp(0, 1)
