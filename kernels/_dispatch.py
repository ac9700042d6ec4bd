"""Registration of ops and selection of their implementations."""

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

Impl = Literal["auto", "triton", "torch"]
NAMESPACE = "fastprompt"
# plain implementations by qualified op name, for tools that count an op's FLOPs
PLAIN: dict[str, Callable[..., Any]] = {}
_PLAIN_TYPES = (Tensor, nn.Parameter)
_INSTALLED = importlib.util.find_spec("triton") is not None
# names of argument types in torch's schemas
_SCHEMA_TYPES: dict[Any, str] = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    list[Tensor]: "Tensor[]",
    list[bool]: "bool[]",
    bool: "bool",
    int: "SymInt",
    float: "float",
}


@dataclass(frozen=True)
class Op:
    """An op's three implementations, which take the same positional arguments.

    Attributes:
        auto: the registered op: the plain implementation on the CPU, the launcher on a GPU.
        triton: the launcher of the Triton kernels.
        torch: the registered op of the plain implementation, on any device.
    """

    auto: Callable[..., Any]
    triton: Callable[..., Any]
    torch: Callable[..., Any]

    def __call__(self, impl: Impl, arguments: tuple[Any, ...]) -> Any:
        return getattr(self, impl)(*arguments)


def interpreted() -> bool:
    """Return whether Triton's interpreter runs the kernels on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _tensors(arguments: Iterable[Any]) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, list):
            yield from _tensors(argument)


def obstacle(arguments: Iterable[Any]) -> str:
    """Return why no kernel can run on these tensors and lists of tensors, or an empty string."""
    if not _INSTALLED:
        return "Triton is not installed"
    for tensor in _tensors(arguments):
        if tensor.dtype == torch.float64:
            return "the kernels do not support float64"
        if not tensor.is_cuda and not interpreted():
            return f"the tensors are on {tensor.device.type}, not on a GPU"
    return ""


def resolve(impl: Impl, *tensors: Tensor | None) -> Impl:
    """Return the name of the `Op` attribute to call.

    Raises:
        ValueError: ``impl`` is not one of the three names.
        RuntimeError: ``impl="triton"`` and no kernel can run on the tensors.
    """
    if impl not in ("auto", "triton", "torch"):
        raise ValueError(f"impl must be 'auto', 'triton' or 'torch', got {impl!r}")
    first = next(t for t in tensors if t is not None)
    if impl == "triton":
        why = obstacle(tensors)
        if why:
            raise RuntimeError(f"impl='triton' cannot run: {why}; use 'auto' or 'torch'")
        return "auto" if first.is_cuda else "triton"
    registered = first.device.type in ("cpu", "cuda", "meta")
    return impl if registered else "torch"


def direct(impl: Impl, *tensors: Tensor | None) -> bool:
    """Return whether to call the plain implementation itself, not as an op.

    On a CPU, the dispatcher takes longer than an op on small tensors. It is needed where something
    traces or counts ops, for tensor subclasses, and for autocast, which `define` disables.
    """
    return (
        impl != "triton"
        and all(t is None or (type(t) in _PLAIN_TYPES and t.is_cpu) for t in tensors)
        and not torch.compiler.is_compiling()
        and not is_in_torch_dispatch_mode()
        and not torch.is_autocast_enabled("cpu")
    )


def define(
    name: str,
    arguments: type[tuple[Any, ...]],
    returns: str,
    *,
    eager: Callable[[Any], Any],
    launch: str,
    fake: Callable[[Any], Any],
    unfit: Callable[[Any], bool] = lambda _: False,
    writes: Collection[str] = (),
) -> Op:
    """Register ``fastprompt::<name>``, and its plain implementation as ``plain_<name>``.

    Registered ops take their arguments one by one; the functions given here take them as one
    tuple. Only this function converts between the two.

    Args:
        name: name of the op.
        arguments: a `NamedTuple` class whose fields are the op's arguments.
        returns: output types in the schema syntax of `torch.library.define`.
        eager: the plain implementation, for the CPU, and for a GPU where no kernel can run.
        launch: the launcher, as ``".module:function"`` in the package of ``arguments``; the module,
            and with it Triton, is imported when the launcher is first called.
        fake: the fake implementation, which gives the shapes and dtypes of the outputs.
        unfit: returns whether a GPU runs the plain implementation because the kernel does not
            support the arguments.
        writes: the fields that the op modifies in place.
    """
    plain = _in_full_precision(lambda *flat: eager(arguments(*flat)))
    PLAIN[f"{NAMESPACE}::{name}"] = plain

    def launcher(*flat: Any) -> Any:
        module, function = launch.split(":")
        package = arguments.__module__.rpartition(".")[0]
        return getattr(importlib.import_module(module, package), function)(arguments(*flat))

    def on_gpu(*flat: Any) -> Any:
        if obstacle(flat) or unfit(arguments(*flat)):
            return plain(*flat)
        # Triton launches kernels on the current GPU, which may not be the tensors' GPU
        with torch.cuda.device(next(_tensors(flat)).device):
            return launcher(*flat)

    def flat_fake(*flat: Any) -> Any:
        return fake(arguments(*flat))

    signature = f"({_parameters(arguments, writes)}) -> {returns}"
    registered = _register(name, signature, {"CPU": plain, "CUDA": on_gpu}, flat_fake)
    # also registered as an op, so that torch.compile does not trace into it
    everywhere = _register(f"plain_{name}", signature, {"default": plain}, flat_fake)
    return Op(registered, launcher, everywhere)


def _parameters(arguments: type[tuple[Any, ...]], writes: Collection[str]) -> str:
    """Return the fields in schema syntax: ``Tensor x, Tensor(a1!)? counts, float eps``."""
    parameters = []
    for place, (name, kind) in enumerate(get_type_hints(arguments).items()):
        written = f"Tensor(a{place}!)" if name in writes else "Tensor"
        parameters.append(f"{_SCHEMA_TYPES[kind].replace('Tensor', written)} {name}")
    return ", ".join(parameters)


def _register(
    name: str,
    signature: str,
    implementations: dict[str, Callable[..., Any]],
    fake: Callable[..., Any],
) -> Callable[..., Any]:
    namespace = getattr(torch.ops, NAMESPACE)
    # a module may be imported twice: reloaded, or as `kernels` from the root of a checkout
    if not hasattr(namespace, name):
        qualified = f"{NAMESPACE}::{name}"
        torch.library.define(qualified, signature)
        for device, implementation in implementations.items():
            torch.library.impl(qualified, device, implementation)
        torch.library.register_fake(qualified, fake)
    return getattr(namespace, name).default


def _in_full_precision(eager: Callable[..., Any]) -> Callable[..., Any]:
    """Disable autocast, which would undo the casts to float32 in the plain implementation."""

    @functools.wraps(eager)
    def run(*arguments: Any) -> Any:
        device = next(_tensors(arguments)).device.type
        if not torch.is_autocast_enabled(device):
            return eager(*arguments)
        with torch.autocast(device, enabled=False):
            return eager(*arguments)

    return run


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Like torch's `once_differentiable`, but also raise if no incoming gradient requires one.

    Otherwise a second derivative would silently miss the contribution of this op.
    """
    once = torch.autograd.function.once_differentiable(backward)

    @functools.wraps(backward)
    def run(ctx: Any, *gradients: Tensor | None) -> Any:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            gradients = tuple(None if g is None else g.detach().requires_grad_() for g in gradients)
        return once(ctx, *gradients)

    return run


def wide_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype to compute in: float32, or float64 if any tensor is float64."""
    dtype = torch.float32
    for tensor in tensors:
        if tensor.dtype != dtype:
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def is_hip() -> bool:
    """Return whether this torch is built for AMD GPUs."""
    return torch.version.hip is not None


def dot_precision(dtype: torch.dtype) -> str:
    """Return the ``input_precision`` of `tl.dot` for float32 operands.

    Operands converted from bfloat16 or float16 are exact in TF32, and the other terms of such sums
    are no more accurate. Float32 features follow `torch.set_float32_matmul_precision`: for
    ``"highest"``, NVIDIA's tensor cores compute three TF32 products, whose error is near that of
    float32. AMD GPUs multiply in float32.
    """
    if is_hip():
        return "ieee"
    full = dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    return "tf32x3" if full else "tf32"
