"""What the op refuses: every message names the argument, what it got and what it takes."""

import math

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    cu_seqlens: Tensor,
    last_only: bool,
    scale: float | None,
) -> None:
    """Shapes, dtypes, devices; not the values of ``cu_seqlens``."""
    tensors = {"q": q, "k": k, "v": v, "prefix_k": prefix_k, "prefix_v": prefix_v}
    if q.dtype not in _DTYPES:
        raise TypeError(f"q must be float32, bfloat16, float16 or float64, got {q.dtype}: cast it")
    for name, tensor in tensors.items():
        if tensor.ndim != 4:
            raise ValueError(
                f"{name} must be [K or 1, tokens, heads, d], got {list(tensor.shape)}: "
                "tokens stand before heads"
            )
        if tensor.dtype != q.dtype:
            raise TypeError(f"{name} must have q's dtype {q.dtype}, got {tensor.dtype}: cast it")
        if tensor.shape[2:] != q.shape[2:]:
            raise ValueError(
                f"{name} must have q's heads and width {list(q.shape[2:])}, "
                f"got {list(tensor.shape[2:])} of {list(tensor.shape)}"
            )
        _check_device(name, tensor, q)
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
    if q.shape[3] < 1:
        raise ValueError(f"q must have a width d of at least 1, got {list(q.shape)}")
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")


def _check_prompts(tensors: dict[str, Tensor]) -> None:
    several = {name: len(t) for name, t in tensors.items() if len(t) != 1}
    if len(set(several.values())) > 1:
        raise ValueError(f"all tensors must hold K prompts or 1, got {several}")


def _check_lengths(q: Tensor, k: Tensor, cu_seqlens: Tensor, last_only: bool) -> None:
    if cu_seqlens.dtype != torch.int32:
        raise TypeError(f"cu_seqlens must be int32, got {cu_seqlens.dtype}: call .int()")
    if cu_seqlens.ndim != 1 or not len(cu_seqlens):
        raise ValueError(
            f"cu_seqlens must be [classes + 1], got {list(cu_seqlens.shape)}: "
            "the cumulative sum of the classes' lengths behind a 0"
        )
    _check_device("cu_seqlens", cu_seqlens, q)
    wanted, whose = (len(cu_seqlens) - 1, "class") if last_only else (k.shape[1], "token of k")
    if q.shape[1] != wanted:
        raise ValueError(
            f"q must hold one query for each {whose}, {wanted} with last_only={last_only}, "
            f"got {q.shape[1]}"
        )


def _check_device(name: str, tensor: Tensor, q: Tensor) -> None:
    if tensor.device != q.device:
        raise ValueError(
            f"{name} must be on q's device {q.device}, got {tensor.device}: move it there"
        )
