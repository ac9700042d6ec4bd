"""Chunks of classes: default size, assignment of classes, recomputation in the backward pass."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

# vectors of size ``width`` that a layer saves per token for the backward pass: 12, plus a margin
_KEPT = 14
_SHARE = 4  # activations may use 1 / _SHARE of the memory


def default_class_chunk(
    classes: int, tokens: int, width: int, layers: int, dtype: torch.dtype, memory: int
) -> int:
    """Return the largest number of classes whose activations fit in a quarter of the memory.

    Args:
        classes: number of classes, the upper limit.
        tokens: number of tokens per class, over all prompts.
        width, layers: width and number of layers of the text encoder.
        dtype: dtype of its activations.
        memory: memory of the device, in bytes.
    """
    each = tokens * width * layers * _KEPT * dtype.itemsize
    return max(1, min(classes, memory // _SHARE // max(each, 1)))


def deal(lengths: Tensor, chunk: int) -> list[Tensor]:
    """Split rows into chunks of at most ``chunk`` rows, each with both long and short rows.

    Chunks of similar shape need the memory of an average chunk, and each can reuse the memory that
    the previous one freed.

    Args:
        lengths: number of tokens of each row, ``[C]``.
    """
    order = lengths.argsort(stable=True)
    hands = -(-len(lengths) // chunk)
    return [order[i::hands] for i in range(hands)]


class _Recomputed(torch.autograd.Function):
    """Run a function that saves only its arguments and is recomputed in the backward pass.

    `torch.utils.checkpoint` is not used, since it keeps the graph nodes of every chunk: these
    fragment the freed memory, and the CPU allocator can't reuse it as a whole (8 GiB for chunks
    that need 1 GiB).
    """

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *tensors: Tensor | None) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(*tensors)
        return function(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        tensors = [
            None if t is None else t.detach().requires_grad_(need)
            for t, need in zip(ctx.saved_tensors, needed, strict=True)
        ]
        with torch.enable_grad():
            out = ctx.function(*tensors)
        wanted = [t for t in tensors if t is not None and t.requires_grad]
        grads = iter(torch.autograd.grad(out, wanted, grad, allow_unused=True))
        return (None, *(next(grads) if need else None for need in needed))


def recomputed(
    function: Callable[..., Tensor], *tensors: Tensor | None, modules: Sequence[nn.Module] = ()
) -> Tensor:
    """Return ``function(*tensors)``; the backward pass recomputes the intermediate values.

    Args:
        modules: trainable modules that the function uses; if not empty, the function gets a list of
            replacements for them as its first argument, before the tensors.
    """
    if torch.compiler.is_compiling():
        # the compiler finds the modules' parameters itself
        function = partial(function, modules) if modules else function
        return checkpoint(function, *tensors, use_reentrant=False)
    if not modules:
        return _Recomputed.apply(function, *tensors)
    # autograd sees only tensor arguments: pass the trainable parameters, and insert them inside
    learning = [{n: p for n, p in m.named_parameters() if p.requires_grad} for m in modules]

    def put_in(*given: Tensor | None) -> Tensor:
        values: Any = iter(given[len(tensors) :])
        calls = [
            partial(functional_call, m, {n: next(values) for n in own}) if own else m
            for m, own in zip(modules, learning, strict=True)
        ]
        return function(calls, *given[: len(tensors)])

    return _Recomputed.apply(put_in, *tensors, *(p for own in learning for p in own.values()))
