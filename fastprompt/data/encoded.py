"""Encoded pictures of any source: read and decoded on access, checked and hashed once."""

import hashlib
import logging
import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from .._utils.hashing import digest_texts
from .._utils.progress import Progress
from .decode import decode
from .splits import RESIZED, Form

log = logging.getLogger(__name__)


class EncodedImages:
    """Encoded pictures with their labels, as (uint8 tensor, int label).

    A subclass reads a picture's bytes in `content`; nothing is read before an item is used.

    Args:
        labels: the label of each picture.
        form: the form of the images.
        as_stored: decode the pictures as `decode` does with this argument.
    """

    def __init__(self, labels: Sequence[int], form: Form, as_stored: bool = False) -> None:
        self.labels = list(labels)
        self._form, self._transform, self._as_stored = form, form.transform(), as_stored

    def content(self, row: int) -> bytes:
        """Return the bytes of the encoded picture."""
        raise NotImplementedError

    def place(self, row: int) -> Path:
        """Return where the picture is, for messages."""
        raise NotImplementedError

    def names(self, rows: Sequence[int]) -> list[str]:
        """Return names of some pictures within the data set, which a run records."""
        raise NotImplementedError

    def fingerprint_of(self, rows: Sequence[int], digests: Sequence[str]) -> str:
        """Return what identifies pictures, from the hashes of their bytes in the same order.

        Sources with the same files and labels in the same order have the same fingerprint.
        """
        items = (f"{digests[i]} {self.labels[row]}" for i, row in enumerate(rows))
        how = "RGB as stored" if self._as_stored else "upright RGB"
        return f"images/{digest_texts(RESIZED, str(self._form), how, *items)}"

    def check(self, row: int) -> tuple[str, str]:
        """Decode a picture; return the hash of its bytes and why it is unreadable, else ''."""
        try:
            return self._digest(row), ""
        except ValueError as error:
            return "", str(error).removeprefix("data: ")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.picture(index)
        return self._transform(image), label

    def picture(self, index: int) -> tuple[Image.Image, int]:
        """Return a picture as it is decoded, not resized, and its label."""
        image = decode(self.place(index), self._read(index), as_stored=self._as_stored)
        return image, self.labels[index]

    def _digest(self, row: int) -> str:
        return _digest(self.place(row), self._read(row))

    def _read(self, row: int) -> bytes:
        return _read(self.place(row), lambda: self.content(row))


def _read(place: Path, content: Callable[[], bytes]) -> bytes:
    try:
        return content()
    except Exception as error:  # of a file system, an archive or a library
        why = str(error) or type(error).__name__
        raise ValueError(f"data: {place} is unreadable ({why}); fix or remove it") from error


def _digest(place: Path, content: bytes) -> str:
    """Decode a picture, or raise ValueError; return the hash of its bytes."""
    width, height = decode(place, content).size
    limit: Any = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        log.warning("data: %s is very large: %d x %d pixels", place, width, height)
    return hashlib.sha256(content).hexdigest()


@lru_cache(maxsize=1 << 20)  # the cells of a protocol load the same files again and again
def _file_digest(path: Path, size: int, changed: int) -> str:
    """Return `_digest` of a file that has this size and was last changed at this time."""
    return _digest(path, _read(path, path.read_bytes))


class FileImages(EncodedImages):
    """Picture files.

    Args:
        folder: the names of the pictures are their paths relative to this folder.
    """

    def __init__(
        self,
        files: Sequence[Path],
        labels: Sequence[int],
        form: Form,
        folder: Path,
        as_stored: bool = False,
    ) -> None:
        super().__init__(labels, form, as_stored)
        self.files, self._folder = list(files), folder

    def _digest(self, row: int) -> str:
        try:
            found = self.files[row].stat()
        except OSError:
            return super()._digest(row)  # says why it cannot be read
        return _file_digest(self.files[row], found.st_size, found.st_mtime_ns)

    def content(self, row: int) -> bytes:
        return self.files[row].read_bytes()

    def place(self, row: int) -> Path:
        return self.files[row]

    def names(self, rows: Sequence[int]) -> list[str]:
        """Return the paths of some files, relative to the data set's folder."""
        return [_relative(self.files[row], self._folder) for row in rows]


def _relative(file: Path, folder: Path) -> str:
    try:
        # a manifest may list files outside of its folder
        return Path(os.path.relpath(file, folder)).as_posix()
    except ValueError:  # on Windows, from another drive
        return file.resolve().as_posix()


@dataclass
class Checked:
    """What was found when pictures were decoded: the hashes of the readable ones, and the rest."""

    digests: dict[int, str] = field(default_factory=dict)
    broken: dict[int, str] = field(default_factory=dict)

    def add(self, images: EncodedImages, rows: Collection[int], title: str) -> None:
        """Decode the pictures ``rows``, in threads, that were not decoded before."""
        new = [row for row in rows if row not in self.digests and row not in self.broken]
        # Pillow decodes and hashlib hashes without the interpreter's lock
        with (
            Progress(len(new), title, "img") as bar,
            ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        ):
            for row, (digest, problem) in zip(new, pool.map(images.check, new), strict=True):
                if problem:
                    self.broken[row] = problem
                else:
                    self.digests[row] = digest
                bar.update()
