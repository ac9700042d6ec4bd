"""Data sets in WebDataset shards: one tar file, a pattern of them, or a folder of them."""

import glob
import itertools
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .._utils.checks import some
from .encoded import EncodedImages
from .folder import visible_folders
from .listed import Listed, class_names_of
from .splits import SPLITS, Form, Source
from .tar_shards import NO_ACCESS, Sample, Shard, samples

log = logging.getLogger(__name__)

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")
_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:|-$")
_MOST = 100_000  # shards of a pattern
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_BRACES = re.compile(r"\{([^{}]*)\}")


def is_shards(name: str) -> bool:
    """Return whether a name is that of a shard or a pattern of shards, compressed or not."""
    return name.lower().endswith((".tar", *_COMPRESSED))


def has_shards(folder: Path) -> bool:
    """Return whether a folder, or each of its folders, which are splits, has shards.

    A folder with other folders may have archives beside its pictures.
    """
    folders = visible_folders(folder)
    if not folders:
        return bool(_in(folder))
    return all(sub.name.lower() in SPLITS and _in(sub) for sub in folders)


def shards_source(name: str, templates: tuple[str, ...]) -> Source:
    """Return the data set of a shard, a pattern such as ``train-{000..009}.tar``, or a folder.

    Each shard is read once, to list its samples; the images are only located.

    Raises:
        FileNotFoundError: a shard does not exist.
        ValueError: the shards are not local or compressed, only some belong to a split, a sample
            does not fit, or the labels have gaps.
    """
    files = find_shards(name)
    _check_distinct(files)
    parts: dict[str, list[_Place]] = {}
    for part, path in _by_split(files, name):
        shard = Shard.at(path)
        parts.setdefault(part, []).extend(_Place(shard, sample) for sample in samples(shard))
    every = [place for places in parts.values() for place in places]

    def wrong(row: int, why: str) -> ValueError:
        return every[row].shard.wrong(f"has the image {every[row].sample.name!r}: {why}")

    labels = [place.sample.label for place in every]
    names = [place.sample.classname for place in every]
    classes = class_names_of(labels, names, wrong, name)
    number = {own: label for label, own in enumerate(classes)}

    def label_of(sample: Sample) -> int:
        return number[sample.classname or ""] if sample.label is None else sample.label

    folder = Path(os.path.commonpath([path.parent for path in files]))

    def opened(part: str, rows: Sequence[int], own: Sequence[int], form: Form) -> EncodedImages:
        return _ShardImages([parts[part][row] for row in rows], own, form, folder)

    ordered: dict[str, Tensor] = {
        part: torch.tensor([label_of(place.sample) for place in parts[part]])
        for part in ("train", "val", "test")
        if part in parts
    }
    read = Listed(name, classes, ordered, opened).read
    return Source(classes, read, templates, named=names[0] is not None)


class _Place(NamedTuple):
    """An image and its shard."""

    shard: Shard
    sample: Sample


class _ShardImages(EncodedImages):
    """Images in shards; only their places are copied to worker processes."""

    def __init__(
        self, places: Sequence[_Place], labels: Sequence[int], form: Form, folder: Path
    ) -> None:
        super().__init__(labels, form)
        self._places, self._folder = list(places), folder

    def content(self, row: int) -> bytes:
        shard, sample = self._places[row]
        return shard.read(sample.offset, sample.size)

    def place(self, row: int) -> Path:
        shard, sample = self._places[row]
        return shard.path / sample.name

    def names(self, rows: Sequence[int]) -> list[str]:
        """Return the names of some images, with their shard's, relative to the shards' folder."""
        return [self.place(row).relative_to(self._folder).as_posix() for row in rows]


# ---- files -------------------------------------------------------------------------------------


def exists(name: str, directory: Path) -> bool:
    """Return whether the first shard of a pattern exists in ``directory``."""
    first = next(_expanded(name), name)
    return any(glob.iglob(first, root_dir=directory)) or (directory / first).exists()


def find_shards(name: str) -> list[Path]:
    """Return the shards of a name, in the order of the pattern and sorted within it.

    Raises:
        FileNotFoundError: a shard does not exist.
        ValueError: the shards are not local or compressed.
    """
    if _REMOTE.match(name):
        raise ValueError(f"data: {name} is not a local file; download the shards first")
    if Path(name).is_dir():
        return _in_folders(Path(name))
    if Path(name).is_file():
        return [_plain(Path(name))]
    names = list(itertools.islice(_expanded(name), _MOST + 1))
    if len(names) > _MOST:
        raise ValueError(f"data: {name} stands for more than {_MOST} shards")
    found = [sorted(glob.glob(one)) or [one] for one in names]
    files = [_plain(Path(file)) for part in found for file in part]
    lost = [str(file) for file in files if not file.is_file()]
    if lost:
        which = f", {len(lost)} of the {len(files)} shards," if len(files) > 1 else ""
        raise FileNotFoundError(f"data: the shard {lost[0]}{which} does not exist")
    return files


def _in_folders(folder: Path) -> list[Path]:
    inner, own = visible_folders(folder), _in(folder)
    if inner and own:
        raise ValueError(f"data: {folder} has folders of shards, and beside them {own[0].name}")
    return own or [file for sub in inner for file in _in(sub)]


def _in(folder: Path) -> list[Path]:
    """Return the shards directly in a folder, sorted."""
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    return [_plain(folder / name) for name in names if is_shards(name)]


def _plain(path: Path) -> Path:
    if path.name.lower().endswith(_COMPRESSED):
        raise ValueError(f"data: the shard {path} {NO_ACCESS}")
    return path


def _expanded(pattern: str) -> Iterator[str]:
    """Yield the names that a pattern with ``{000..003}`` and ``{a,b}`` stands for, in order."""
    found = _BRACES.search(pattern)
    parts = None if found is None else _alternatives(found[1])
    if found is None or parts is None:
        yield pattern
        return
    for part in parts:
        for rest in _expanded(pattern[found.end() :]):
            yield f"{pattern[: found.start()]}{part}{rest}"


def _alternatives(inner: str) -> Iterator[str] | list[str] | None:
    """Return what braces stand for; None if they are a part of the name."""
    if (ends := _RANGE.fullmatch(inner)) is not None:
        low, high = ends[1], ends[2]
        width = max(len(low), len(high)) if "0" in (low[0], high[0]) else 0
        step = 1 if int(low) <= int(high) else -1
        return (f"{n:0{width}d}" for n in range(int(low), int(high) + step, step))
    return inner.split(",") if "," in inner else None


def _check_distinct(files: Sequence[Path]) -> None:
    seen: dict[Path, Path] = {}
    for file in files:
        real = file.resolve()
        if real in seen:
            raise ValueError(f"data: the shards {seen[real]} and {file} are the same file")
        seen[real] = file


def _by_split(files: Sequence[Path], name: str) -> list[tuple[str, Path]]:
    """Return the shards with the splits that their names or folders tell; all train without."""
    several = len({file.parent for file in files}) > 1
    splits = [_split_of(file, several) for file in files]
    if len({split is None for split in splits}) > 1:
        one = files[splits.index(None)]
        other = next(file for file, split in zip(files, splits, strict=True) if split)
        raise ValueError(
            f"data: {name} has shards of splits, such as {other}, and others, such as {one}; "
            "name all of them train, val or test, or none"
        )
    if set(splits) == {"train"}:
        log.warning(
            "data: %s has no test shards: the images are cut into 70 %% training, 10 %% validation "
            "and 20 %% test images",
            name,
        )
    return [(split or "train", file) for split, file in zip(splits, files, strict=True)]


def _split_of(file: Path, several: bool) -> str | None:
    """Return the split of a shard such as ``birds-train-000.tar``, or else None.

    If the shards are in several folders, those called ``train`` and so on tell the split.
    """
    folder = file.parent.name.lower()
    if several and folder in SPLITS:
        return SPLITS[folder]
    words = re.split(r"[^a-z]+", file.stem.lower())
    found = sorted({SPLITS[word] for word in words if word in SPLITS})
    if len(found) > 1:
        raise ValueError(f"data: the shard {file} names the splits {some(found)}; name one")
    return found[0] if found else None
