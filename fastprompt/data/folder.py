"""Image folders: one subfolder per class, or train, val and test folders of subfolders."""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .._utils.checks import first_difference, some
from .decode import is_picture
from .encoded import FileImages
from .splits import SPLITS, Form, Split, pick

log = logging.getLogger(__name__)

# what archives, file servers and systems leave behind; hidden folders are skipped too
_JUNK = frozenset(
    ("__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
)


@dataclass(frozen=True)
class _Listing:
    """The picture files of class folders, and their labels."""

    files: list[Path]
    labels: Tensor


@dataclass(frozen=True)
class ImageFolder:
    """A folder whose layout was recognized.

    Attributes:
        path: the folder.
        classes: the names of the class folders, sorted.
        splits: the folders of the splits that exist; empty if ``path`` holds the class folders.
    """

    path: Path
    classes: list[str]
    splits: dict[str, Path]
    _listings: dict[str, _Listing] = field(default_factory=dict, repr=False)

    @classmethod
    def find(cls, path: Path) -> "ImageFolder":
        """Recognize the layout of ``path``.

        It has ``train`` and ``test`` folders (or ``val``; also ``training``, ``validation``,
        ``Test``, ...), only ``train``, or class folders. Hidden folders and those of archives and
        file servers are skipped.

        Raises:
            ValueError: the layout is another one (the message says what was found), or the splits
                have different class folders.
        """
        splits = _split_folders(path)
        classes: list[str] = []
        for folder in splits.values():
            found = _class_folders(folder)
            if classes and found != classes:
                first = next(iter(splits.values()))
                raise ValueError(
                    f"data: {folder} has other classes than {first}: "
                    f"{first_difference(found, classes)}; use the same class folders"
                )
            classes = found
        if set(splits) == {"train"}:
            log.warning(
                "data: %s has no test folder: the images of %s are cut into 70 %% training, 10 %% "
                "validation and 20 %% test images",
                path,
                splits["train"].name,
            )
        whole = cls(path, classes or _class_folders(path), splits)
        whole._listed(next(iter(splits), "train"))
        return whole

    def read(self, split: str, form: Form) -> Split:
        """Return the images of ``"train"``, ``"val"`` or ``"test"``, and their labels.

        Raises:
            ValueError: as `pick`.
        """
        part, rows = pick(
            split, self.splits, lambda own: self._listed(own).labels, self.classes, self.path
        )
        found = self._listed(part)
        labels = found.labels[rows]
        files = [found.files[row] for row in rows]
        return FileImages(files, labels.tolist(), form, self.path), labels

    def _listed(self, split: str) -> _Listing:
        """List the pictures of a split once, so that files that appear later change nothing."""
        if split not in self._listings:
            files, labels, folder = [], [], self.splits.get(split, self.path)
            for label, name in enumerate(self.classes):
                for file in pictures(folder / name):
                    files.append(file)
                    labels.append(label)
            self._listings[split] = _Listing(files, torch.tensor(labels))
        return self._listings[split]


# ---- layout ------------------------------------------------------------------------------------


def _split_folders(path: Path) -> dict[str, Path]:
    """Return the folders of ``path`` that are splits, train first; none if it has classes."""
    named: dict[str, Path] = {}
    loose, others = [], []
    for folder in visible_folders(path):
        split = SPLITS.get(folder.name.lower())
        if split is None:
            others.append(folder)
        elif _has_pictures(folder):  # a class may be called "train"
            loose.append(folder)
        elif split in named:
            raise ValueError(
                f"data: {path} has two {split} folders, {named[split].name!r} and {folder.name!r}; "
                "keep one of them"
            )
        else:
            named[split] = folder
    if loose and (named or not others):
        raise ValueError(
            f"data: {loose[0]} must have one folder of pictures per class, but its pictures are "
            "not in folders"
        )
    ignored = [folder.name for folder in others if next(pictures(folder), None)] if named else []
    if ignored and set(named) == {"train"}:
        raise ValueError(
            f"data: {path} has a train folder beside {some(ignored)}: name the folder of the test "
            f"images test, or pass {named['train']}"
        )
    if ignored:
        log.warning("data: %s has %s and %s: the latter is ignored", path, _names(named), ignored)
    return {split: named[split] for split in ("train", "val", "test") if split in named}


def _class_folders(path: Path) -> list[str]:
    """Return the names of the class folders in ``path``, each of which has pictures."""
    where = f"data: {path} must have one folder of pictures per class"
    folders = visible_folders(path)
    if not folders:
        files = sorted(entry.name for entry in path.iterdir() if entry.is_file())
        raise ValueError(f"{where}, but has no folders and {_some_files(files)}")
    for folder in folders:
        if _has_pictures(folder):
            continue
        inner = [sub.name for sub in visible_folders(folder) if next(pictures(sub), None)]
        if not inner:
            files = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
            raise ValueError(
                f"{where}, but {folder.name!r} has {_some_files(files)} and no pictures: add "
                "pictures, or remove it"
            )
        if len(inner) > 1 or len(folders) == 1:
            raise ValueError(
                f"{where}, but {folder.name!r} has only the folders {some(inner)}; if these are "
                f"the classes or the splits, pass {folder}"
            )
    return [folder.name for folder in folders]


def visible_folders(path: Path) -> list[Path]:
    """Return the folders in ``path``, sorted, without hidden ones and those of systems."""
    found = (entry for entry in path.iterdir() if entry.is_dir())
    return sorted(entry for entry in found if not _skipped(entry.name))


def _skipped(name: str) -> bool:
    return name.startswith(".") or name in _JUNK


def _has_pictures(folder: Path) -> bool:
    """Return whether pictures are directly in ``folder``."""
    with os.scandir(folder) as entries:
        return any(is_picture(entry.name) and entry.is_file() for entry in entries)


def pictures(folder: Path) -> Iterator[Path]:
    """Yield the pictures in ``folder`` and below it, in a fixed order."""
    for place, inner, names in os.walk(folder, followlinks=True):
        inner[:] = sorted(name for name in inner if not _skipped(name))
        yield from (Path(place) / name for name in sorted(names) if is_picture(name))


def _names(splits: dict[str, Path]) -> str:
    return " and ".join(folder.name for folder in splits.values())


def _some_files(names: list[str]) -> str:
    return f"the files {some(names)}" if names else "no files"
