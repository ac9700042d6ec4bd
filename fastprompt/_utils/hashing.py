"""SHA-256 hashes of tensors, of texts and of what JSON can hold."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

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


def digest_texts(*texts: str) -> str:
    """SHA-256 of texts, in their order."""
    return digest({}, *texts)


def digest_json(value: Any) -> str:
    """SHA-256 of what JSON can hold; the order of a mapping's keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
