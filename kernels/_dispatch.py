"""How an op is registered, and which of its implementations runs."""

import functools
import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Impl = Literal["auto", "triton", "torch"]
NAMESPACE = "fastprompt"


@dataclass(frozen=True)
class Op:
    """One op in its three implementations, which take the same arguments.

    Attributes:
        auto: the registered op: plain code on the CPU, the launcher on a GPU.
        triton: the launcher.
        torch: plain code, on any device.
    """

    auto: Callable[..., Any]
    triton: Callable[..., Any]
    torch: Callable[..., Any]

    def __call__(self, impl: Impl, *arguments: Any) -> Any:
        return getattr(self, impl)(*arguments)


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _tensors(arguments: Iterable[Any]) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, list):
            yield from _tensors(argument)


def obstacle(arguments: Iterable[Any]) -> str:
    """Why no kernel can run on the tensors among these and in their lists; empty if one can."""
    if not _installed():
        return "Triton is not installed"
    for tensor in _tensors(arguments):
        if tensor.dtype == torch.float64:
            return "it has no float64"
        if not tensor.is_cuda and not interpreted():
            return f"the tensors are on {tensor.device.type}, not on a GPU"
    return ""


def resolve(impl: Impl, *tensors: Tensor | None) -> Impl:
    """Which attribute of an `Op` to call.

    Raises:
        ValueError: ``impl`` is none of the three.
        RuntimeError: ``"triton"`` where it can't run.
    """
    if impl not in ("auto", "triton", "torch"):
        raise ValueError(f"impl must be 'auto', 'triton' or 'torch', got {impl!r}")
    first = next(t for t in tensors if t is not None)
    if impl == "triton":
        why = obstacle(tensors)
        if why:
            raise RuntimeError(f"impl='triton' can't run: {why}; use 'auto' or 'torch'")
        return "auto" if first.is_cuda else "triton"
    registered = first.device.type in ("cpu", "cuda", "meta")
    return impl if registered else "torch"


def define(
    schema: str,
    *,
    eager: Callable[..., Any],
    launch: Callable[..., Any],
    fake: Callable[..., Any],
) -> Op:
    """Register ``fastprompt::<schema>``.

    Args:
        schema: name and signature, as `torch.library.define` takes them.
        eager: plain code: the CPU's implementation, and a GPU's for float64.
        launch: calls the launcher; it imports `kernel`, and with it Triton, when it is called.
        fake: shapes and dtypes of the outputs.
    """
    name, signature = schema[: schema.index("(")], schema[schema.index("(") :]
    qualified = f"{NAMESPACE}::{name}"

    def on_gpu(*arguments: Any) -> Any:
        if obstacle(arguments):
            return eager(*arguments)
        # Triton starts kernels on the current GPU, which need not be the tensors'
        with torch.cuda.device(next(_tensors(arguments)).device):
            return launch(*arguments)

    # a module may be run again: by a reload, or found as `kernels` from the root of a checkout
    if not hasattr(getattr(torch.ops, NAMESPACE), name):
        torch.library.define(qualified, signature)
        torch.library.impl(qualified, "CPU", eager)
        torch.library.impl(qualified, "CUDA", on_gpu)
        torch.library.register_fake(qualified, fake)
    return Op(getattr(getattr(torch.ops, NAMESPACE), name).default, launch, eager)


def is_hip() -> bool:
    """Whether this torch is built for AMD."""
    return torch.version.hip is not None


def dot_precision(dtype: torch.dtype) -> str:
    """How a kernel multiplies float32 operands.

    Operands that come from bfloat16 or float16 values are exact in TF32, and what is accumulated
    beside them is no better; float32 features are multiplied as torch is told to multiply them.
    """
    if is_hip():
        return "ieee"
    if dtype != torch.float32 or torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    return "ieee"
