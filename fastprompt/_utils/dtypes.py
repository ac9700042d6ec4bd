"""Precision names, and conversion of low-precision tensors to float32."""

from contextlib import nullcontext

import torch
from torch import Tensor

from .checks import check_choice

PRECISIONS = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def at_least_float32(x: Tensor) -> Tensor:
    """Convert bfloat16 and float16 to float32, in which losses do not underflow."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def has_bf16(device: torch.device) -> bool:
    """Return whether the device supports bfloat16 without emulation."""
    if device.type == "cuda":
        with nullcontext() if device.index is None else torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu"


def multiplies_bf16(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 matrices natively, faster than float32."""
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported()
    return has_bf16(device)


def own_precision(dtype: torch.dtype) -> str:
    """Return the name of a dtype's precision."""
    return next(name for name, known in PRECISIONS.items() if known == dtype)


def default_precision(dtype: torch.dtype, device: torch.device) -> str:
    """Return ``"bf16"`` for float32 weights on a GPU that supports it, else their precision."""
    if dtype == torch.float32 and device.type == "cuda" and has_bf16(device):
        return "bf16"
    return own_precision(dtype)


def check_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a precision.

    Raises:
        ValueError: the precision is unknown, or the device does not support it.
    """
    check_choice(precision, "precision", tuple(PRECISIONS))
    if precision == "bf16" and not has_bf16(device):
        raise ValueError(f"precision: {device} does not support bfloat16; use 'fp32'")
    if precision == "fp64" and device.type == "mps":
        raise ValueError(f"precision: {device} does not support float64; use 'fp32'")
    return PRECISIONS[precision]
