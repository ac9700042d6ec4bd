"""Precision names, what ``"auto"`` gives on a device, and conversion to float32."""

import functools
import logging
import os
from contextlib import nullcontext
from typing import Final, Literal

import torch
from torch import Tensor

from .checks import check_choice

Precision = Literal["auto", "fp64", "fp32", "bf16", "fp16"]
AUTO: Final = "auto"
PRECISIONS = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
# Names of `torch.cpu.get_capabilities`; the last one is that of Arm processors.
_CPU_UNITS = ("avx512_bf16", "amx_bf16", "bf16")
# Variables that restrict a CPU's instructions, with their values that exclude bfloat16 products:
# torch accepts its own in lower case only; oneDNN, which multiplies bfloat16 for torch, accepts its
# names in any case, reads the second variable if the first is not set, and ignores unknown names.
_ATEN, _ATEN_WITHOUT = "ATEN_CPU_CAPABILITY", ("default", "avx2")
_ONEDNN = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
_ONEDNN_WITHOUT = (
    *("sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2", "avx512_core", "avx512_core_vnni"),
)
log = logging.getLogger(__name__)


def at_least_float32(x: Tensor) -> Tensor:
    """Convert bfloat16 and float16 to float32, in which losses do not underflow."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def why_no_bf16(device: torch.device) -> str:
    """Return why torch does not multiply bfloat16 natively on the device; empty if it does.

    On a CPU, the instructions are asked of torch, which asks the processor and knows neither of the
    variables. oneDNN's own answer (``_is_mkldnn_bf16_supported``) is not enough: it is true for
    every CPU with AVX-512, where products are emulated if the bfloat16 instructions are lacking.
    """
    if device.type == "cuda":
        with nullcontext() if device.index is None else torch.cuda.device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "" if native else f"{device} has no bfloat16 units"
    if device.type != "cpu":
        return f"{device} has no bfloat16 units that torch is known to use"
    if not any(torch.cpu.get_capabilities().get(name) for name in _CPU_UNITS):
        return "this CPU has no bfloat16 units"
    if not torch.backends.mkldnn.is_available():
        return "torch was built without oneDNN, which uses the CPU's bfloat16 units"
    name = next((name for name in _ONEDNN if os.environ.get(name)), _ONEDNN[0])
    for variable, without in ((_ATEN, _ATEN_WITHOUT), (name, _ONEDNN_WITHOUT)):
        value = os.environ.get(variable, "")
        if (value if variable == _ATEN else value.lower()) in without:
            return f"{variable}={value} excludes the CPU's bfloat16 units"
    return ""


def multiplies_bf16(device: torch.device) -> bool:
    """Return whether torch multiplies bfloat16 natively on the device, without emulation."""
    return not why_no_bf16(device)


def own_precision(dtype: torch.dtype) -> str:
    """Return the name of a dtype's precision."""
    return next(name for name, known in PRECISIONS.items() if known == dtype)


def auto_precision(dtype: torch.dtype, device: torch.device) -> str:
    """Return what ``"auto"`` gives for weights of a dtype.

    That is ``"bf16"`` for float32 weights where the device multiplies it natively, else the
    weights' own precision.
    """
    if dtype != torch.float32:
        return own_precision(dtype)
    if multiplies_bf16(device):
        return "bf16"
    _log_once(logging.INFO, f"precision 'auto' is 'fp32': {why_no_bf16(device)}")
    return "fp32"


def explain_auto(dtype: torch.dtype, device: torch.device) -> str:
    """Return what ``"auto"`` gives and why, such as ``fp32 (this CPU has no bfloat16 units)``."""
    if dtype != torch.float32:
        return f"{own_precision(dtype)} (that of the weights)"
    why = why_no_bf16(device)
    return f"fp32 ({why})" if why else f"bf16 ({device} multiplies it natively)"


def check_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a precision; warn once if a CPU emulates it.

    Raises:
        ValueError: the precision is unknown, or the device does not support it.
    """
    check_choice(precision, "precision", tuple(PRECISIONS))
    if precision == "bf16" and not multiplies_bf16(device):
        if device.type != "cpu":
            raise ValueError(f"precision: {device} does not support bfloat16; use 'fp32'")
        why = why_no_bf16(device)
        _log_once(
            logging.WARNING,
            f"precision 'bf16' is emulated and slower than 'fp32': {why}; use 'auto' or 'fp32'",
        )
    if precision == "fp64" and device.type == "mps":
        raise ValueError(f"precision: {device} does not support float64; use 'fp32'")
    return PRECISIONS[precision]


@functools.cache
def _log_once(level: int, message: str) -> None:
    """Log a message once per process."""
    log.log(level, message)
