"""Argument checks of the attention; each error names the argument, its limits and its value."""

import torch
from torch import Tensor

from .._check import check_device, check_dtype, check_floating, check_number, check_tensor


def check_arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    cu_seqlens: Tensor,
    classes: Tensor | None,
    last_only: bool,
    scale: float | None,
) -> None:
    """Check shapes, dtypes and devices, but not the values of ``cu_seqlens`` and ``classes``."""
    tensors = {"q": q, "k": k, "v": v, "prefix_k": prefix_k, "prefix_v": prefix_v}
    check_tensor(q, "q")
    check_floating(q, "q")
    for name, tensor in tensors.items():
        check_tensor(tensor, name)
        if tensor.ndim != 4:
            raise ValueError(
                f"{name} must be [K or 1, tokens, heads, d], got {list(tensor.shape)}; "
                "tokens come before heads"
            )
        check_dtype(tensor, name, q, "q")
        if tensor.shape[2:] != q.shape[2:]:
            raise ValueError(
                f"{name} must have q's heads and width {list(q.shape[2:])}, "
                f"got {list(tensor.shape[2:])} in shape {list(tensor.shape)}"
            )
        check_device(tensor, name, q, "q")
    for name, tensor, like, other in (
        ("v", v, "k", k),
        ("prefix_v", prefix_v, "prefix_k", prefix_k),
    ):
        if tensor.shape[1] != other.shape[1]:
            raise ValueError(
                f"{name} must have {like}'s {other.shape[1]} tokens, got {tensor.shape[1]}"
            )
    _check_prompts(tensors)
    _check_lengths(q, k, cu_seqlens, last_only)
    if classes is not None:
        _check_classes(classes, q, k)
    if q.shape[2] < 1 or q.shape[3] < 1:
        raise ValueError(
            "q must be [K or 1, tokens, heads, d] with at least 1 head and a width d of at least "
            f"1, got {list(q.shape)}"
        )
    if scale is not None:
        # reading a tensor's value would also synchronize with the GPU
        remedy = "it would get no gradient, multiply q by it and pass scale=1"
        check_number(scale, "scale", remedy=remedy)


def _check_prompts(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not tensor.shape[0]:
            raise ValueError(f"{name} must have at least 1 prompt, got shape {list(tensor.shape)}")
    several = {name: len(t) for name, t in tensors.items() if len(t) != 1}
    if len(set(several.values())) > 1:
        name = ", ".join(several)
        raise ValueError(f"{name} must each have 1 prompt or the same number K, got {several}")


def _check_classes(classes: Tensor, q: Tensor, k: Tensor) -> None:
    check_tensor(classes, "classes")
    if classes.dtype != torch.int32:
        raise TypeError(f"classes must be int32, got {classes.dtype}; call .int()")
    if classes.shape != k.shape[1:2]:
        raise ValueError(
            f"classes must be [{k.shape[1]}], one per token of k, got {list(classes.shape)}; "
            "compute it with token_classes(cu_seqlens, tokens)"
        )
    check_device(classes, "classes", q, "q")


def _check_lengths(q: Tensor, k: Tensor, cu_seqlens: Tensor, last_only: bool) -> None:
    check_tensor(cu_seqlens, "cu_seqlens")
    if cu_seqlens.dtype != torch.int32:
        raise TypeError(f"cu_seqlens must be int32, got {cu_seqlens.dtype}; call .int()")
    if cu_seqlens.ndim != 1 or not len(cu_seqlens):
        raise ValueError(
            f"cu_seqlens must be [classes + 1], got {list(cu_seqlens.shape)}; "
            "pass a 0 followed by the cumulative sum of the class lengths"
        )
    check_device(cu_seqlens, "cu_seqlens", q, "q")
    wanted, whose = (len(cu_seqlens) - 1, "class") if last_only else (k.shape[1], "token of k")
    if q.shape[1] != wanted:
        raise ValueError(
            f"q must have {wanted} queries with last_only={last_only}, one per {whose}, "
            f"got {q.shape[1]}"
        )
