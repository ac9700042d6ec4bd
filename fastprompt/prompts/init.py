"""Initial values of trainable parameters."""

import torch
from torch import Tensor


def normal(generator: torch.Generator, *shape: int, std: float = 0.02) -> Tensor:
    return std * torch.randn(*shape, generator=generator)


def check_start(start: Tensor | None, n_ctx: int, width: int) -> None:
    """Raise unless ``start`` is None or a floating-point tensor ``[at most n_ctx, width]``."""
    if start is None:
        return
    if not isinstance(start, Tensor) or not start.is_floating_point():
        got = start.dtype if isinstance(start, Tensor) else type(start).__name__
        raise TypeError(f"start must be a tensor of floats, got {got}")
    if start.ndim != 2 or len(start) > n_ctx or start.shape[1] != width:
        raise ValueError(
            f"start must be [at most {n_ctx}, {width}], got {list(start.shape)}; "
            "it gives the first tokens"
        )


def uniform(generator: torch.Generator, fan_in: int, *shape: int) -> Tensor:
    """Return initial values as in `nn.Linear`: uniform in ``+-1 / sqrt(fan_in)``."""
    return (2 * torch.rand(*shape, generator=generator) - 1) * fan_in**-0.5
