"""Atomic file writes: write a temporary file, flush it to disk, then rename it."""

import contextlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .hashing import digest

# a single metadata key with sorted JSON: safetensors writes several keys in random order, and equal
# contents should give equal bytes
_HEADER = "fastprompt"
_DIGEST = "sha256"


_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-z_]{8}\.tmp")


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically; on an error, an existing file stays unchanged.

    Raises:
        OSError: the disk is full, or the folder is not writable.
    """
    with replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of ``path`` when the context ends without an error.

    Raises:
        OSError: the disk is full, or the folder is not writable.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        # the kernel applies the umask to this mode; O_EXCL follows no link
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(temporary, flags, 0o666), "wb") as file:
            yield file
            _flush(file)
        _replace(temporary, path)
    except BaseException as error:  # including KeyboardInterrupt: leave no temporary file
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if not isinstance(error, OSError):
            raise
        raise OSError(
            error.errno, f"could not write {path}: {error.strerror}; an existing file is unchanged"
        ) from error


def append_line(path: Path, line: str) -> None:
    """Append a line to ``path`` and flush it to disk; after a crash the last line may be cut.

    Raises:
        OSError: the disk is full, or the file is not writable.
    """
    try:
        with path.open("ab") as file:
            file.write(f"{line}\n".encode())
            _flush(file)
    except OSError as error:
        raise OSError(error.errno, f"could not write {path}: {error.strerror}") from error


def _replace(temporary: Path, path: Path) -> None:
    # Windows replaces no file that another process, such as a report, has open: wait for it
    for seconds in (0.01, 0.1, 1.0) if os.name == "nt" else ():
        try:
            return os.replace(temporary, path)
        except PermissionError:
            time.sleep(seconds)
    os.replace(temporary, path)


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def is_temporary(path: Path, name: str | None = None) -> bool:
    """Return whether a write that was killed left this file, of ``name`` if it is given."""
    found = _TEMPORARY.fullmatch(path.name)
    return found is not None and name in (None, found["name"])


def remove_temporaries(folder: Path, name: str | None = None) -> None:
    """Remove the files that killed writes left in ``folder``; no process may be writing there."""
    if folder.is_dir():
        for path in folder.iterdir():
            if is_temporary(path, name):
                path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` atomically as indented JSON."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file does not contain a JSON object, for example because it is truncated.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also nested too deep, integers of 5,000 digits
        raise ValueError(
            f"{path} is not readable JSON ({error}); it may be damaged: restore it from a copy"
        ) from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must contain a JSON object, got {type(value).__name__}")
    return value


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically, with ``metadata`` and a digest of both."""
    # copy, since safetensors rejects tensors that share memory
    plain = {
        k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()
    }
    header = dict(metadata) | {_DIGEST: _sign(plain, metadata)}
    write_bytes(path, save(plain, metadata={_HEADER: json.dumps(header, sort_keys=True)}))


def _sign(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    return digest(tensors, *(f"{k}={metadata[k]}" for k in sorted(metadata)))


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata written by `write_tensors` with ``metadata["kind"] == kind``.

    Raises:
        FileNotFoundError: the file does not exist.
        OSError: the file may not be read, which says nothing about its content.
        ValueError: the file is truncated, was not written by fastprompt, has another kind, or was
            changed.
    """
    try:
        path.open("rb").close()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise FileNotFoundError(
            f"{path} does not exist; if the run was stopped, resume it"
        ) from None
    except OSError as error:
        raise OSError(error.errno, f"could not read {path}: {error.strerror}") from error
    try:
        with safe_open(str(path), framework="pt") as file:
            header = (file.metadata() or {}).get(_HEADER, "{}")
            # copies: safetensors maps the file into memory, and Windows replaces no mapped file
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a complete safetensors file ({error}); restore it from a copy, or "
            "remove it and run again"
        ) from None
    try:
        metadata = {str(k): str(v) for k, v in json.loads(header).items()}
    except (ValueError, AttributeError):
        metadata = {}
    stored = metadata.pop(_DIGEST, None)
    if metadata.get("kind") != kind or stored is None:
        raise ValueError(
            f"{path} must be a fastprompt file of kind {kind!r}, got kind "
            f"{metadata.get('kind')!r}; restore it from a copy, or remove it and run again"
        )
    if stored != _sign(tensors, metadata):
        raise ValueError(
            f"{path} was changed after it was written: its digest does not match; restore it from "
            "a copy, or remove it and run again"
        )
    return tensors, metadata
