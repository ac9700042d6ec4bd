"""Random access to WebDataset shards: tar files whose samples are indexed by their offsets.

Consecutive files whose names are equal up to the first dot are one sample; what follows the dot is
the file's key: ``0001.jpg`` and ``0001.cls`` are the image and the label of sample ``0001``.
"""

import json
import os
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from .._utils.checks import shown
from .decode import is_picture

_OPEN = 64  # files that a process keeps open
_INDEXED = 1 << 14  # shards whose indices a process keeps
_LABEL_BYTES = 1 << 20  # of a file with a label
_BLOCK = tarfile.BLOCKSIZE
# first bytes of compressed files: gzip, bzip2, xz, zstd
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
NO_ACCESS = "is compressed, which allows no random access; decompress it to a .tar file"


class Sample(NamedTuple):
    """An image in a shard.

    Attributes:
        name: the name of its file.
        offset, size: the place of its bytes in the shard.
        label, classname: None if the sample has none; never both.
    """

    name: str
    offset: int
    size: int
    label: int | None
    classname: str | None


@dataclass(frozen=True)
class Shard:
    """A tar file as it was when it was listed."""

    path: Path
    size: int
    changed: int  # in nanoseconds

    @classmethod
    def at(cls, path: Path) -> "Shard":
        found = path.stat()
        return cls(path, found.st_size, found.st_mtime_ns)

    def wrong(self, why: str) -> ValueError:
        """Return an error about the shard."""
        return ValueError(f"data: the shard {self.path} {why}")

    def read(self, offset: int, size: int) -> bytes:
        """Return a part of the file.

        The file stays open. Reads do not move a shared position, so that threads do not disturb
        each other, and each process, forked or not, opens its own file.

        Raises:
            OSError: the file has changed since it was listed, or cannot be read.
        """
        file = _opened(os.getpid(), self)
        found = file.read(offset, size)
        if len(found) != size:
            raise OSError(f"{self.path} ends before byte {offset + size}")
        return found


class _File:
    """An open file; closed when neither the cache nor a thread uses it."""

    def __init__(self, path: Path) -> None:
        flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        self.number, self._lock = os.open(path, flags), threading.Lock()

    def read(self, offset: int, size: int) -> bytes:
        """Return at most ``size`` bytes from ``offset``."""
        if hasattr(os, "pread"):
            return os.pread(self.number, size, offset)
        with self._lock:  # Windows has only reads that move the position
            os.lseek(self.number, offset, os.SEEK_SET)
            return os.read(self.number, size)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@lru_cache(maxsize=_OPEN)
def _opened(process: int, shard: Shard) -> _File:
    file = _File(shard.path)
    found = os.fstat(file.number)
    if (found.st_size, found.st_mtime_ns) != (shard.size, shard.changed):
        raise OSError(
            f"{shard.path} has changed since it was listed; load the data again, or copy the file "
            "with its time (cp -p)"
        )
    return file


# ---- index -------------------------------------------------------------------------------------


@lru_cache(maxsize=_INDEXED)
def samples(shard: Shard) -> tuple[Sample, ...]:
    """Return the samples of a shard, in its order; the shard is read once.

    Raises:
        ValueError: the shard is compressed, truncated or no tar file; has links, absolute paths or
            paths with ``..``; or a sample has no image, several images, no label, a label that
            cannot be read, or a key that another sample or file has; the message names it.
    """
    found: dict[str, dict[str, tarfile.TarInfo]] = {}
    last = ""
    for member in _members(shard):
        folder, slash, file = member.name.rpartition("/")
        stem, _, extension = file.partition(".")
        if not stem or not extension:
            continue  # hidden files, and files without a key, are no part of a sample
        key, extension = f"{folder}{slash}{stem}", extension.lower()
        if key in found and key != last:
            raise shard.wrong(f"has the sample {key!r} twice; rename or remove one of them")
        files = found.setdefault(key, {})
        if extension in files:
            raise shard.wrong(
                f"has two files {extension!r} of the sample {key!r}; remove one of them"
            )
        files[extension], last = member, key
    if not found:
        raise shard.wrong("has no samples")
    return tuple(_sample(shard, key, files) for key, files in found.items())


@lru_cache(maxsize=_INDEXED)
def pictures(shard: Shard) -> tuple[Sample, ...]:
    """Return all pictures in a tar file, in its order, without labels; the file is read once.

    Raises:
        ValueError: as `samples`, but for the samples and their labels.
    """
    return tuple(
        Sample(member.name, member.offset_data, member.size, None, None)
        for member in _members(shard)
        if is_picture(PurePosixPath(member.name).name)
    )


def _members(shard: Shard) -> Iterator[tarfile.TarInfo]:
    """Yield the files of a shard; raise unless the tar file is whole and has nothing else."""
    start = shard.read(0, min(8, shard.size))
    if start.startswith(_COMPRESSED):
        raise shard.wrong(NO_ACCESS)
    try:
        tar = tarfile.open(shard.path, "r:")  # noqa: SIM115  # only opening raises this error
    except tarfile.TarError as error:
        raise shard.wrong(f"is truncated, or no tar file ({error}); copy it again") from error
    with tar:
        while (member := _next(shard, tar)) is not None:
            _check_member(shard, member)
            if member.isreg():
                yield member
        _check_end(shard, tar.offset)


def _next(shard: Shard, tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    try:
        return tar.next()
    except (tarfile.TarError, ValueError, OverflowError) as error:  # of damaged headers
        raise shard.wrong(f"is truncated or damaged ({error}); copy it again") from error


def _check_member(shard: Shard, member: tarfile.TarInfo) -> None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise shard.wrong(f"has the path {member.name!r}; paths must be relative and without '..'")
    if not (member.isreg() or member.isdir()) or member.issparse():
        kind = "link" if member.issym() or member.islnk() else "special or sparse file"
        raise shard.wrong(f"has the {kind} {member.name!r}; it may have only plain files")
    if member.size < 0 or member.offset_data + member.size > shard.size:
        raise shard.wrong(f"is truncated or damaged: it ends within {member.name!r}; copy it again")


def _check_end(shard: Shard, end: int) -> None:
    """Raise unless the archive ends with a block of zeros, and only zeros follow.

    `tarfile` takes a file that ends between two samples, or a damaged header, for the end.
    """
    if end + _BLOCK > shard.size or any(shard.read(end, _BLOCK)):
        raise shard.wrong(
            f"is truncated or damaged: it has no end-of-archive mark at byte {end}; copy it again"
        )
    for offset in range(end, shard.size, 1 << 20):
        if any(shard.read(offset, min(1 << 20, shard.size - offset))):
            raise shard.wrong(
                f"has data behind its end at byte {end}, such as a second tar file that was "
                "appended; unpack and pack it again"
            )


# ---- samples -----------------------------------------------------------------------------------


def _sample(shard: Shard, key: str, files: dict[str, tarfile.TarInfo]) -> Sample:
    # "seg.png" is another field of the sample, not its image
    images = [kind for kind in files if "." not in kind and is_picture(f"image.{kind}")]
    if len(images) != 1:
        many = f"several images ({', '.join(images)})" if images else "no image"
        raise shard.wrong(
            f"has {many} in the sample {key!r}; its files are {_listed(key, files)}, of which one "
            "must be an image, such as .jpg, .png or .webp"
        )
    image = files[images[0]]
    label, name = _label(shard, key, files)
    return Sample(image.name, image.offset_data, image.size, label, name)


def _listed(key: str, files: dict[str, tarfile.TarInfo]) -> str:
    return ", ".join(f"{key}.{extension}" for extension in files)


def _label(
    shard: Shard, key: str, files: dict[str, tarfile.TarInfo]
) -> tuple[int | None, str | None]:
    """Return a sample's label and class name, from ``cls`` and ``json``, else from ``txt``."""
    label = name = None
    if "cls" in files:
        label = _whole(shard, key, "cls", _text(shard, files["cls"]))
    if "json" in files:
        facts = _json(shard, files["json"])
        name = facts.get("classname")
        if "label" in facts:
            own = _whole(shard, key, "json", facts["label"])
            if label not in (None, own):
                raise shard.wrong(
                    f"has two labels of the sample {key!r}: {label} in .cls and {own} in .json"
                )
            label = own
    if label is None and name is None and "txt" in files:
        name = _text(shard, files["txt"])
    if name is not None and (not isinstance(name, str) or not name.strip() or "\0" in name):
        raise shard.wrong(f"has a class name of the sample {key!r} that is no text: {name!r}")
    if label is None and name is None:
        raise shard.wrong(
            f"has no label of the sample {key!r}; its files are {_listed(key, files)}, of which "
            "one must be .cls (the number of the class), .json (with label or classname) or .txt "
            "(the class name)"
        )
    return label, name and name.strip()


def _whole(shard: Shard, key: str, kind: str, given: Any) -> int:
    text = given.strip() if isinstance(given, str) else str(given)
    # isdecimal accepts the digits of all scripts; a long number is no label
    if isinstance(given, bool) or not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise shard.wrong(
            f"has a label of the sample {key!r} that is no whole number from 0: {shown(given)} in "
            f".{kind}"
        )
    return int(text)


def _text(shard: Shard, member: tarfile.TarInfo) -> str:
    if member.size > _LABEL_BYTES:
        raise shard.wrong(f"has {member.size} bytes in {member.name!r}, which is too long a label")
    try:
        return shard.read(member.offset_data, member.size).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise shard.wrong(f"has {member.name!r}, which is no UTF-8 text") from None


def _json(shard: Shard, member: tarfile.TarInfo) -> dict[str, Any]:
    text = _text(shard, member)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise shard.wrong(f"has {member.name!r}, which is not valid JSON ({error})") from None
    if not isinstance(found, dict):
        raise shard.wrong(f"has {member.name!r}, which must be a JSON object")
    return found
