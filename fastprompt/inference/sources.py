"""Pictures without labels, from files, folders, patterns, manifests and tar files."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from .._utils.checks import check_path
from ..data.decode import decode
from ..data.folder import pictures
from ..data.manifest import Manifest, is_manifest
from ..data.shards import find_shards, has_shards, is_shards
from ..data.tar_shards import Shard
from ..data.tar_shards import pictures as pictures_in

_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)


@dataclass(frozen=True)
class Picture:
    """A picture that has been found, not read.

    Attributes:
        path: its file, or its name in a shard behind the shard's path.
        shard, offset, size: the place of its bytes in a shard; without one, it is a file.
    """

    path: Path
    shard: Shard | None = None
    offset: int = 0
    size: int = 0

    @property
    def name(self) -> str:
        """The path as text; bytes of a file name that are no UTF-8 become question marks."""
        return os.fsencode(self.path).decode("utf-8", "replace")

    def open(self) -> Image.Image:
        """Read and decode the picture to 8-bit RGB, as `decode` does.

        Raises:
            ValueError: it cannot be read; the message says why.
        """
        try:
            if self.shard is not None:
                return decode(self.path, self.shard.read(self.offset, self.size))
            if not self.path.is_file():  # reading a pipe would wait for ever
                raise FileNotFoundError("no such file")
            return decode(self.path, self.path.read_bytes())
        except _MISSING as error:  # others are of the machine; `decode` raises ValueError
            raise ValueError(f"{self.path} is unreadable ({error.strerror or error})") from None


def find_pictures(paths: Iterable[str | Path]) -> list[Picture]:
    """List the pictures of files, folders, patterns, manifests and tar files, each once.

    The order is that of ``paths``; folders and patterns are sorted. A folder is searched with all
    folders below it for files whose names end as those of pictures do; other files count only if
    they are given themselves or by a pattern.

    Args:
        paths: files; folders of pictures or of ``.tar`` files; patterns such as ``"a/**/*.png"``
            or ``"part-{000..009}.tar"``; manifests, ``.csv`` or ``.jsonl`` files with a column
            ``path``, relative to the manifest.

    Raises:
        FileNotFoundError: a path does not exist, or nothing matches a pattern.
        ValueError: there are no pictures, a manifest is wrong, or a tar file is damaged or
            compressed.
        TypeError: a path is neither a string nor a path.
    """
    given = [str(check_path(path, "path")) for path in paths]
    try:
        found = [picture for path in given for picture in _at(path)]
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(str(error).replace("data: ", "path: ", 1)) from None
    # the same file may be given twice, such as by two patterns
    distinct = list({os.path.normpath(picture.path): picture for picture in found}.values())
    if not distinct:
        raise ValueError(f"path: there are no pictures in {', '.join(given) or 'an empty list'}")
    return distinct


def _at(given: str) -> Iterator[Picture]:
    path = Path(given)
    if path.is_dir():
        own = [Picture(file) for file in pictures(path)]
        if own or not has_shards(path):  # an archive may lie beside pictures
            yield from own
        else:
            yield from _in_shards(given)
    elif os.path.lexists(path):
        yield from _in_file(path)
    elif is_shards(given):  # a pattern, with braces too
        yield from _in_shards(given)
    elif glob.has_magic(given):
        matches = sorted(glob.glob(given, recursive=True))
        if not matches:
            raise FileNotFoundError(f"path: nothing matches {given}")
        for match in matches:
            # a last "**" matches folders too, whose files match it themselves
            if Path(given).name != "**" or not Path(match).is_dir():
                yield from _at(match)
    else:
        raise FileNotFoundError(f"path: {given} does not exist")


def _in_file(path: Path) -> Iterator[Picture]:
    if is_manifest(path.name):
        yield from map(Picture, Manifest(path, None, labeled=False).files)
    elif is_shards(path.name):
        yield from _in_shards(str(path))
    else:
        yield Picture(path)


def _in_shards(given: str) -> Iterator[Picture]:
    for path in find_shards(given):
        shard = Shard.at(path)
        for sample in pictures_in(shard):
            yield Picture(path / sample.name, shard, sample.offset, sample.size)
