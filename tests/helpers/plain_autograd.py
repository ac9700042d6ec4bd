"""A backward pass in Python, for fake tensors: torch's engine asks the driver for its streams."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

Edges = dict[tuple[Any, int], Tensor]  # gradients by node and number of its output


def _edges(outputs: Sequence[Tensor], grads: Sequence[Tensor | None]) -> Edges:
    found: Edges = {}
    for output, grad in zip(outputs, grads, strict=True):
        edge = get_gradient_edge(output)
        found[edge.node, edge.output_nr] = torch.ones_like(output) if grad is None else grad
    return found


def _ordered(roots: list[Any]) -> list[Any]:
    """Return all nodes, each one before those that it passes gradients to."""
    order: list[Any] = []
    seen: set[Any] = set()
    stack = [(node, False) for node in roots]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(after, False) for after, _ in node.next_functions if after is not None]
    return order[::-1]


def _call(node: Any, grads: list[Tensor | None]) -> list[Tensor | None]:
    """Return the gradients for ``node.next_functions``."""
    if not isinstance(node, torch.autograd.function.BackwardCFunction):
        out = node(*grads)
        return list(out) if isinstance(out, tuple) else [out]
    zipped = zip(grads, node._input_metadata, strict=True)
    whole = [
        torch.zeros(m.shape, dtype=m.dtype, device=m.device) if g is None else g for g, m in zipped
    ]
    out = node.apply(*whole)
    out = out if isinstance(out, tuple) else (out,)
    # arguments that are no tensors have no edge
    given = iter([g for g, need in zip(out, node.needs_input_grad, strict=True) if need])
    return [None if after is None else next(given) for after, _ in node.next_functions]


def _fit(grad: Tensor, wanted: Any) -> Tensor:
    """Sum over broadcast dimensions and cast, as the engine does."""
    if tuple(grad.shape) != tuple(wanted.shape):
        grad = grad.sum_to_size(wanted.shape)
    return grad if grad.dtype == wanted.dtype else grad.to(wanted.dtype)


@torch.no_grad()
def _run(given: Edges, wanted: set[tuple[Any, int]]) -> Edges:
    """Return the gradients that reach ``wanted``; the leaves' if it is empty."""
    grads: dict[Any, dict[int, Tensor]] = defaultdict(dict)
    for (node, place), grad in given.items():
        grads[node][place] = grad
    order = _ordered([node for node, _ in given])
    ends = {node for node, _ in wanted}
    needed: set[Any] = set()
    for node in reversed(order):
        leaf = node.name().endswith("AccumulateGrad")
        leads = any(after in needed for after, _ in node.next_functions if after is not None)
        if leads or (node in ends if wanted else leaf):
            needed.add(node)
    found: Edges = {}
    for node in order:
        own = grads.pop(node, {})
        for place, grad in own.items():
            if (node, place) in wanted or node.name().endswith("AccumulateGrad"):
                found[node, place] = grad
        leads = any(after in needed for after, _ in node.next_functions if after is not None)
        if not own or not leads:
            continue
        outs = _call(node, [own.get(i) for i in range(len(node._input_metadata))])
        for out, (after, place) in zip(outs, node.next_functions, strict=True):
            if out is None or after not in needed:
                continue
            out = _fit(out, after._input_metadata[place])
            known = grads[after].get(place)
            grads[after][place] = out if known is None else known + out
    return found


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def grad(
    outputs: Any, inputs: Any, grad_outputs: Any = None, allow_unused: bool = False
) -> tuple[Tensor | None, ...]:
    """`torch.autograd.grad`, once differentiable."""
    outputs, inputs = _tuple(outputs), _tuple(inputs)
    given = (None,) * len(outputs) if grad_outputs is None else _tuple(grad_outputs)
    places = [tuple(get_gradient_edge(t))[:2] for t in inputs]
    found = _run(_edges(outputs, given), set(places))
    out = tuple(found.get(place) for place in places)
    assert allow_unused or None not in [g if g is None else 0 for g in out]
    return out


def backward(loss: Tensor) -> None:
    """`Tensor.backward` of a scalar."""
    for (node, _), grad in _run(_edges([loss], [None]), set()).items():
        leaf = node.variable
        leaf.grad = grad if leaf.grad is None else leaf.grad + grad


@contextmanager
def plain_autograd() -> Iterator[None]:
    """Replace `torch.autograd.grad` and `Tensor.backward`."""
    with mock.patch("torch.autograd.grad", grad), mock.patch.object(Tensor, "backward", backward):
        yield
