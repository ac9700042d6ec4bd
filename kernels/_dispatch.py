"""How an op is registered, and which of its implementations runs."""

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

import torch
from torch import Tensor

Impl = Literal["auto", "triton", "torch"]
NAMESPACE = "fastprompt"
# plain code by the op's qualified name, for who counts what an op does inside
PLAIN: dict[str, Callable[..., Any]] = {}
_INSTALLED = importlib.util.find_spec("triton") is not None
# what the schemas of torch call the types of arguments
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
    """One op in its three implementations, which take the same arguments, one after the other.

    Attributes:
        auto: the registered op: plain code on the CPU, the launcher on a GPU.
        triton: the launcher.
        torch: the registered op of the plain code, on any device.
    """

    auto: Callable[..., Any]
    triton: Callable[..., Any]
    torch: Callable[..., Any]

    def __call__(self, impl: Impl, arguments: tuple[Any, ...]) -> Any:
        return getattr(self, impl)(*arguments)


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _tensors(arguments: Iterable[Any]) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, list):
            yield from _tensors(argument)


def obstacle(arguments: Iterable[Any]) -> str:
    """Why no kernel can run on the tensors among these and in their lists; empty if one can."""
    if not _INSTALLED:
        return "Triton is not installed"
    for tensor in _tensors(arguments):
        if tensor.dtype == torch.float64:
            return "the kernels have no float64"
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
    """Register ``fastprompt::<name>``, and the plain code alone as ``plain_<name>`` beside it.

    Registered ops take their arguments one by one. What is given here takes all of them as one
    tuple: this is the only place that converts between the two.

    Args:
        name: of the op.
        arguments: a `NamedTuple` class, whose fields are the op's arguments.
        returns: types of the outputs, as `torch.library.define` takes them.
        eager: plain code: the CPU's implementation, and a GPU's for float64.
        launch: the launcher, ``".module:function"`` in the package of ``arguments``; the module,
            and Triton with it, is imported when the launcher is first called.
        fake: shapes and dtypes of the outputs.
        unfit: whether the kernel can't take the arguments and a GPU runs plain code.
        writes: the fields that the op writes over.
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
        # Triton starts kernels on the current GPU, which need not be the tensors'
        with torch.cuda.device(next(_tensors(flat)).device):
            return launcher(*flat)

    def flat_fake(*flat: Any) -> Any:
        return fake(arguments(*flat))

    signature = f"({_parameters(arguments, writes)}) -> {returns}"
    registered = _register(name, signature, {"CPU": plain, "CUDA": on_gpu}, flat_fake)
    # an op of its own, too: compiled code takes it as one piece, as it takes the kernel
    everywhere = _register(f"plain_{name}", signature, {"default": plain}, flat_fake)
    return Op(registered, launcher, everywhere)


def _parameters(arguments: type[tuple[Any, ...]], writes: Collection[str]) -> str:
    """The fields as a schema writes them: ``Tensor x, Tensor(a1!)? counts, float eps``."""
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
    # a module may be run again: by a reload, or found as `kernels` from the root of a checkout
    if not hasattr(namespace, name):
        qualified = f"{NAMESPACE}::{name}"
        torch.library.define(qualified, signature)
        for device, implementation in implementations.items():
            torch.library.impl(qualified, device, implementation)
        torch.library.register_fake(qualified, fake)
    return getattr(namespace, name).default


def _in_full_precision(eager: Callable[..., Any]) -> Callable[..., Any]:
    """Without autocast: it would cast what plain code has widened on purpose."""

    @functools.wraps(eager)
    def run(*arguments: Any) -> Any:
        device = next(_tensors(arguments)).device.type
        if not torch.is_autocast_enabled(device):
            return eager(*arguments)
        with torch.autocast(device, enabled=False):
            return eager(*arguments)

    return run


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Torch's, which also refuses to go on where no gradient came in that needs one.

    Without that a second derivative would quietly lack what goes through this op.
    """
    once = torch.autograd.function.once_differentiable(backward)

    @functools.wraps(backward)
    def run(ctx: Any, *gradients: Tensor | None) -> Any:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            gradients = tuple(None if g is None else g.detach().requires_grad_() for g in gradients)
        return once(ctx, *gradients)

    return run


def wide_dtype(*tensors: Tensor) -> torch.dtype:
    """What plain code computes in: float32, or float64 where one of them is."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def is_hip() -> bool:
    """Whether this torch is built for AMD."""
    return torch.version.hip is not None


def dot_precision(dtype: torch.dtype) -> str:
    """How a kernel multiplies float32 operands.

    Operands that come from bfloat16 or float16 values are exact in TF32, and what is accumulated
    beside them is no better. Float32 features are multiplied as torch is told to multiply them; in
    full precision that is three TF32 products on NVIDIA's tensor cores, whose error is near that of
    float32. AMD's multiply float32 as it is.
    """
    if is_hip():
        return "ieee"
    full = dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    return "tf32x3" if full else "tf32"
