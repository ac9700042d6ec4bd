"""Hashes of tensors."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def digest(tensors: Mapping[str, Tensor], *extra: str) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of ``tensors``, in the names' order."""
    total = hashlib.sha256()
    for text in extra:
        total.update(text.encode() + b"\0")
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
