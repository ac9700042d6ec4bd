"""Precisions by name, and what must not be computed in less than float32."""

from contextlib import nullcontext

import torch
from torch import Tensor

PRECISIONS = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def at_least_float32(x: Tensor) -> Tensor:
    """Low-precision values in float32: a loss of them would underflow."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16, not by emulation."""
    if device.type == "cuda":
        with nullcontext() if device.index is None else torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu"


def own_precision(dtype: torch.dtype) -> str:
    """The precision of weights."""
    return next(name for name, known in PRECISIONS.items() if known == dtype)


def default_precision(dtype: torch.dtype, device: torch.device) -> str:
    """``"bf16"`` for float32 weights on a GPU that has it, else the weights' own."""
    if dtype == torch.float32 and device.type == "cuda" and has_bf16(device):
        return "bf16"
    return own_precision(dtype)


def check_precision(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of a precision.

    Raises:
        ValueError: an unknown one, or one that the device lacks.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "bf16" and not has_bf16(device):
        raise ValueError(f"precision: {device} has no bfloat16: use 'fp32'")
    if precision == "fp64" and device.type == "mps":
        raise ValueError(f"precision: {device} has no float64: use 'fp32'")
    return PRECISIONS[precision]
