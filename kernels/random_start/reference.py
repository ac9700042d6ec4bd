"""Reference implementation of the random start with Python integers, for tests."""

import torch
from torch import Tensor

_MASK = 2**32 - 1


def philox(counter: tuple[int, int, int, int], seed: int) -> tuple[int, int, int, int]:
    """Return Philox-4x32-10's four 32-bit words for a counter of four words and a 64-bit seed.

    Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3. A round
    multiplies two words by constants and XORs the products' halves with the other words and keys::

        (c0, c1, c2, c3) <- (high(m1 * c2) ^ c1 ^ k0, low(m1 * c2),
                             high(m0 * c0) ^ c3 ^ k1, low(m0 * c0))
    """
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        first, second = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            (second >> 32) ^ c1 ^ k0,
            second & _MASK,
            (first >> 32) ^ c3 ^ k1,
            first & _MASK,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def uniform(index: int, n: int, seed: int, restart: int) -> Tensor:
    """Return ``n`` numbers in [0, 1] for one image, float32 ``[n]``.

    The counter consists of the position of a group of four entries, the restart, and both halves of
    the image index. A word gives 31 bits: as in Triton's ``uint_to_uniform_float``, words with the
    sign bit set are folded onto the others.
    """
    words: list[int] = []
    while len(words) < n:
        counter = len(words) // 4, restart & _MASK, index & _MASK, (index >> 32) & _MASK
        words += philox(counter, seed)
    folded = [min(word, _MASK - word) for word in words[:n]]
    return torch.tensor(folded, dtype=torch.float32) * 4.6566127342e-10


def random_start(
    x: Tensor,
    indices: Tensor,
    key: Tensor,
    eps: float,
    lo: float = 0.0,
    hi: float = 1.0,
    one_sided: bool = False,
) -> Tensor:
    """``clip(x + eps * (2u - 1), lo, hi)`` or, one-sided, ``clip(x + eps * u, lo, hi)``, u uniform.

    Args:
        x: images ``[B, ...]``.
        indices: the images' indices, int64 ``[B]``.
        key: seed and restart, int64 ``[2]``.
    """
    seed, restart = key.tolist()
    rows = [uniform(index, x[0].numel(), seed, restart) for index in indices.tolist()]
    unit = torch.stack(rows).view_as(x)
    return torch.clamp(x + (unit if one_sided else unit * 2 - 1) * eps, lo, hi)
