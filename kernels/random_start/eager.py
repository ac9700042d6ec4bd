"""Plain PyTorch implementation of the random start; gives the same bits on every device.

Philox-4x32 with ten rounds: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import math

import torch
from torch import Tensor

from .arguments import Start

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def _multiply(a: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """Return the product's high and low 32 bits; int64 wraps, and the mask drops the sign bits."""
    product = a * constant
    return (product >> 32) & _LOW, product & _LOW


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: Tensor) -> tuple[Tensor, ...]:
    """Return four random 32-bit words per counter of four words, all as broadcastable int64."""
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = seed & _LOW, (seed >> 32) & _LOW
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def _to_unit(word: Tensor) -> Tensor:
    """Map 32-bit words to float32 in [0, 1] by 31 bits, as Triton's ``uint_to_uniform_float``."""
    signed = torch.where(word > 0x7FFFFFFF, word - (1 << 32), word)
    folded = torch.where(signed < 0, -signed - 1, signed)
    return folded.to(torch.float32) * 4.6566127342e-10


def uniform(indices: Tensor, n: int, key: Tensor) -> Tensor:
    """Return numbers uniform in [0, 1], float32 ``[B, n]``; row b depends on ``indices[b], key``.

    Args:
        indices: int64 ``[B]``.
        key: seed and restart, int64 ``[2]``.
    """
    blocks = torch.arange((n + 3) // 4, device=indices.device)
    image = indices[:, None]
    restart = (key[1] & _LOW).expand_as(image)
    words = philox((blocks[None, :], restart, image & _LOW, (image >> 32) & _LOW), key[0])
    return _to_unit(torch.stack(words, dim=2)).flatten(1)[:, :n]


def random_start(start: Start) -> Tensor:
    """Return ``clip(x + noise, lo, hi)``, noise uniform in [-eps, eps] or, one-sided, [0, eps]."""
    x = start.x
    radius: float | Tensor = start.eps
    unit = uniform(start.indices, math.prod(x.shape[1:]), start.key).view(x.shape).to(x.dtype)
    if start.epses is not None:
        radius = start.epses.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
    noise = unit * radius if start.one_sided else (unit * 2 - 1) * radius
    return (x + noise).clamp_(start.lo, start.hi).contiguous()
