"""Classes in chunks: how many at once, which together, and computed again in the backward pass."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

# tensors of a token's width that a layer keeps for the backward pass: measured 12, with room
_KEPT = 14
_SHARE = 4  # of the memory, one part in so many


def default_class_chunk(
    classes: int, tokens: int, width: int, layers: int, dtype: torch.dtype, memory: int
) -> int:
    """The most classes whose activations take a quarter of the memory, at most all of them.

    Args:
        tokens: of one class, in all its prompts.
        width, layers: of the text tower.
        dtype: of its activations.
        memory: the device's, in bytes.
    """
    each = tokens * width * layers * _KEPT * dtype.itemsize
    return max(1, min(classes, memory // _SHARE // max(each, 1)))


def deal(lengths: Tensor, chunk: int) -> list[Tensor]:
    """Rows in chunks of at most ``chunk``, each with its share of long and of short ones.

    Chunks of one shape take as much memory as an average one, and leave behind what the next one
    fits into.

    Args:
        lengths: tokens of each row, ``[C]``.
    """
    order = lengths.argsort(stable=True)
    hands = -(-len(lengths) // chunk)
    return [order[i::hands] for i in range(hands)]


class _Recomputed(torch.autograd.Function):
    """Keeps its arguments and nothing else, and runs again in the backward pass.

    Not `torch.utils.checkpoint`: that leaves the nodes of every chunk's graph behind, which lie
    between what was freed, so that the CPU's allocator can't give it out again as a whole (8 GiB
    for chunks that need 1).
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
    """``function(*tensors)``, whose inner values are computed again in the backward pass.

    Args:
        modules: what learns inside; the function is called with stand-ins for them, in one list in
            front of the tensors, if there are any.
    """
    if torch.compiler.is_compiling():
        # the compiler finds the parameters of modules by itself
        function = partial(function, modules) if modules else function
        return checkpoint(function, *tensors, use_reentrant=False)
    if not modules:
        return _Recomputed.apply(function, *tensors)
    # autograd sees none but the tensors handed in: what learns goes in, and is put in place inside
    learning = [{n: p for n, p in m.named_parameters() if p.requires_grad} for m in modules]

    def put_in(*given: Tensor | None) -> Tensor:
        values: Any = iter(given[len(tensors) :])
        calls = [
            partial(functional_call, m, {n: next(values) for n in own}) if own else m
            for m, own in zip(modules, learning, strict=True)
        ]
        return function(calls, *given[: len(tensors)])

    return _Recomputed.apply(put_in, *tensors, *(p for own in learning for p in own.values()))
