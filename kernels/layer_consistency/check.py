"""Argument checks of `layer_consistency`; each error names the argument and its value."""

from collections.abc import Sequence

from torch import Tensor

from .._check import check_device, check_dtype, check_floating, check_shape, check_tensor


def check_layers(
    a: Tensor | Sequence[Tensor], b: Tensor | Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor], int]:
    """Return two lists of tensors ``[k * B, ...]``, and B; a stack becomes one of L * B rows."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        _check_stack(a, "a")
        _check_stack(b, "b")
        _check_pair(a, "a", b, "b")
        return [a.flatten(0, 1)], [b.flatten(0, 1)], a.shape[1]
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        got = f"{type(a).__name__} and {type(b).__name__}"
        raise TypeError(f"a and b must be two lists of tensors or two stacked tensors, got {got}")
    _check_list(a, "a")
    _check_list(b, "b")
    if len(a) != len(b):
        raise ValueError(f"b must have as many layers as a, {len(a)}, got {len(b)}")
    for layer, (x, y) in enumerate(zip(a, b, strict=True)):
        name = f"a[{layer}]"
        if x.ndim < 2:
            raise ValueError(f"{name} must be [B, ...] with at least two dimensions, {_shape(x)}")
        if x.shape[0] != a[0].shape[0]:
            wanted = f"the batch size of a[0], {a[0].shape[0]}"
            raise ValueError(f"{name} must have {wanted}, got {x.shape[0]}; put the batch first")
        _check_kind(x, name, a[0], "a[0]")
        _check_pair(x, name, y, f"b[{layer}]")
    return list(a), list(b), a[0].shape[0]


def _shape(tensor: Tensor) -> str:
    return f"got {list(tensor.shape)}"


def _check_stack(stack: Tensor, name: str) -> None:
    if stack.ndim < 3:
        raise ValueError(
            f"{name} must be a stack [L, B, ...] with at least three dimensions, {_shape(stack)}; "
            "pass a single layer as a list"
        )
    if not stack.shape[0]:
        raise ValueError(f"{name} must have at least one layer, {_shape(stack)}")


def _check_list(layers: Sequence[Tensor], name: str) -> None:
    if not isinstance(layers, (list, tuple)):
        kind = type(layers).__name__
        raise TypeError(f"{name} must be a list of tensors or a stacked tensor, got {kind}")
    if not layers:
        raise ValueError(f"{name} must have at least one layer, got an empty list")
    for layer, tensor in enumerate(layers):
        check_tensor(tensor, f"{name}[{layer}]")


def _check_pair(x: Tensor, name: str, y: Tensor, other_name: str) -> None:
    check_shape(y, other_name, x, name)
    check_floating(x, name)
    _check_kind(y, other_name, x, name)


def _check_kind(tensor: Tensor, name: str, other: Tensor, other_name: str) -> None:
    check_dtype(tensor, name, other, other_name)
    check_device(tensor, name, other, other_name)
