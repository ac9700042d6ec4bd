"""Where kernels run in these tests: on a GPU, or on the CPU under TRITON_INTERPRET=1."""

import os

import pytest
import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
# without the interpreter a test needs a GPU, and is skipped, saying so, where there is none
MARKS = [] if INTERPRETED else [pytest.mark.gpu]

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
DTYPE_IDS = ["fp32", "fp16", "bf16"]
# steps between neighboring values at 1
EPSILON = {torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


def worst(got: Tensor, exact: Tensor) -> float:
    """Largest error, relative to the largest exact value."""
    scale = exact.abs().max().clamp(min=1e-30) if exact.numel() else torch.ones(())
    return (
        float((got.double().cpu() - exact.double().cpu()).abs().max() / scale)
        if got.numel()
        else 0.0
    )


def strided(tensor: Tensor) -> Tensor:
    """The same values with gaps between them in memory."""
    wide = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1]), 7.0)
    wide[..., ::2] = tensor
    return wide[..., ::2]
