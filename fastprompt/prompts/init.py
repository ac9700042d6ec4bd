"""Initial values of trainable parameters."""

import torch
from torch import Tensor


def normal(generator: torch.Generator, *shape: int, std: float = 0.02) -> Tensor:
    return std * torch.randn(*shape, generator=generator)


def uniform(generator: torch.Generator, fan_in: int, *shape: int) -> Tensor:
    """Return initial values as in `nn.Linear`: uniform in ``+-1 / sqrt(fan_in)``."""
    return (2 * torch.rand(*shape, generator=generator) - 1) * fan_in**-0.5
