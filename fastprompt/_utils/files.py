"""Files are written whole: to a temporary name, flushed to the disk, then renamed."""

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .hashing import digest

# one metadata key holds it all as sorted JSON: safetensors writes several keys in random order, and
# equal files should be equal bytes
_HEADER = "fastprompt"
_DIGEST = "sha256"


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, or leave what was there before as it was.

    Raises:
        OSError: the disk is full, or the folder can't be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException as error:  # Ctrl-C, too, leaves no temporary file
        with contextlib.suppress(OSError):
            os.unlink(name)
        if not isinstance(error, OSError):
            raise
        raise OSError(
            error.errno, f"could not write {path}: {error.strerror}; what was there is unchanged"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a JSON object, as when it was cut short.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable JSON ({error}): damaged or foreign") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whole, with ``metadata`` and a digest over both."""
    # copies: safetensors refuses tensors that share memory
    plain = {
        k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()
    }
    header = dict(metadata) | {_DIGEST: _sign(plain, metadata)}
    write_bytes(path, save(plain, metadata={_HEADER: json.dumps(header, sort_keys=True)}))


def _sign(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    return digest(tensors, *(f"{k}={metadata[k]}" for k in sorted(metadata)))


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file that `write_tensors` made with ``metadata["kind"] == kind``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut short, foreign, of another kind, or its contents were changed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = (file.metadata() or {}).get(_HEADER, "{}")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}): restore it from a copy, or remove "
            "it and run again"
        ) from None
    try:
        metadata = {str(k): str(v) for k, v in json.loads(header).items()}
    except (ValueError, AttributeError):
        metadata = {}
    stored = metadata.pop(_DIGEST, None)
    if metadata.get("kind") != kind or stored is None:
        raise ValueError(
            f"{path} is not fastprompt's own {kind!r} file: kind {metadata.get('kind')!r}"
        )
    if stored != _sign(tensors, metadata):
        raise ValueError(
            f"{path} was changed after it was written, its digest does not match: restore it from "
            "a copy, or remove it and run again"
        )
    return tensors, metadata
