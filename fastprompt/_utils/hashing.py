"""SHA-256 hashes of tensors, strings and JSON values."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def digest(tensors: Mapping[str, Tensor], *extra: str) -> str:
    """Return the SHA-256 of ``extra`` and the tensors' names (sorted), dtypes, shapes and bytes."""
    total = hashlib.sha256()
    for text in extra:
        # file names may hold surrogates
        total.update(text.encode(errors="surrogatepass") + b"\0")
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def digest_texts(*texts: str) -> str:
    """Return the SHA-256 of the texts, in the given order."""
    return digest({}, *texts)


def digest_json(value: Any) -> str:
    """Return the SHA-256 of a JSON value; the order of a mapping's keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
