"""Images for the steps of an attack, and their arguments."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def batch(
    n: int = 3, size: int = 5, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Current images, clean images, a gradient."""
    gen = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, size, size, generator=gen, dtype=dtype)
    x_adv = (x + 0.1 * (torch.rand(x.shape, generator=gen, dtype=dtype) - 0.5)).clamp(0, 1)
    return x_adv, x, torch.randn(x.shape, generator=gen, dtype=dtype)


def given_anew(arguments: Iterable[Any]) -> list[Any]:
    """The arguments, with each tensor copied."""
    return [t.clone() if isinstance(t, Tensor) else t for t in arguments]
