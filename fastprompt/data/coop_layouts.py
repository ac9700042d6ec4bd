"""Reading of CoOp's files: split files, lists of variants, and folders per class."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from .._utils.checks import shown, some
from .._utils.files import read_json
from .coop_sets import CLASSNAMES, PREFIX, VARIANT_LISTS, VARIANTS, CoOpSet
from .decode import is_picture

log = logging.getLogger(__name__)

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Listing:
    """The pictures of a split: paths relative to the image folder, and labels."""

    names: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    def add(self, name: str, label: int) -> None:
        """Append a picture."""
        self.names.append(name)
        self.labels.append(label)

    def restricted(self, names: Collection[str]) -> "Listing":
        """Return the pictures with these names, which have no suffixes."""
        out = Listing()
        for name, label in zip(self.names, self.labels, strict=True):
            if without_suffix(name) in names:
                out.add(name, label)
        return out


def without_suffix(name: str) -> str:
    """Return ``"Faces/image_0001"`` for ``"Faces/image_0001.jpg"``."""
    return PurePosixPath(name).with_suffix("").as_posix()


@dataclass(frozen=True)
class Content:
    """What the files of a data set list.

    Attributes:
        classnames: CoOp's class names in the order of the labels.
        splits: the pictures of the splits that exist.
        mask: the label in ImageNet of each class, for ImageNet and its variants.
    """

    classnames: list[str]
    splits: dict[str, Listing]
    mask: tuple[int, ...] | None = None


def missing(spec: CoOpSet, root: Path) -> list[str]:
    """Return the files, and the folder of pictures, that a data set lacks; relative to root."""
    folder = root / spec.folder
    places = {name: folder / name for name in spec.lists}
    if CLASSNAMES in places:
        places[CLASSNAMES] = _classnames_file(root, folder)
    out = [f"{spec.folder}/{name}" for name, place in places.items() if not place.is_file()]
    # of ImageNet, train is not needed for an evaluation
    images = f"{spec.images}/val" if spec.name == "ImageNet" else spec.images
    if not (folder / images).is_dir():
        out.append(f"{spec.folder}/{images}/")
    return out


def read_layout(spec: CoOpSet, root: Path) -> Content:
    """Read the files of a data set of which nothing is `missing`.

    Raises:
        ValueError: a file has another layout, or its labels and class names do not fit together.
    """
    folder = root / spec.folder
    if spec.layout == "split":
        return _of_split_file(folder / spec.split, spec)
    if spec.layout == "variants":
        return _of_variants(folder)
    return _of_folders(folder / spec.images, _classnames_file(root, folder), spec)


# ---- split files -------------------------------------------------------------------------------


def _of_split_file(file: Path, spec: CoOpSet) -> Content:
    try:
        content = read_json(file)
    except ValueError as error:
        raise ValueError(f"data: {error}") from None
    return read_split(content, file, spec.renamed)


def read_split(content: Mapping[str, Any], file: Path, renamed: Mapping[str, str]) -> Content:
    """Return what a split file lists; ``file`` is its name for messages.

    Raises:
        ValueError: the file has another layout, or its labels and class names do not fit together.
    """
    splits: dict[str, Listing] = {}
    names: dict[int, str] = {}
    for part in PARTS:
        entries = content.get(part)
        if not isinstance(entries, list):
            raise ValueError(f"data: {file} must have the lists {', '.join(PARTS)}")
        splits[part] = Listing()
        for entry in entries:
            path, label, name = _entry(entry, part, file)
            splits[part].add(path, label)
            known = names.setdefault(label, name)
            if known != name:
                raise ValueError(
                    f"data: {file} has two names for the label {label}: {known!r} and {name!r}"
                )
    if lacking := sorted(names.keys() - set(splits["train"].labels)):
        raise ValueError(
            f"data: {file} has classes in val or test that train lacks: "
            f"{some([names[label] for label in lacking])}"
        )
    if gaps := sorted(set(range(len(names))) - names.keys()):
        raise ValueError(
            f"data: {file} has {len(names)} classes, so that its labels must be 0 to "
            f"{len(names) - 1}, but there is no label {gaps[0]}"
        )
    return Content([renamed.get(names[i], names[i]) for i in range(len(names))], splits)


def _entry(entry: Any, part: str, file: Path) -> tuple[str, int, str]:
    kinds = (str, int, str)
    if not isinstance(entry, list) or tuple(map(type, entry)) != kinds:
        raise ValueError(
            f"data: {file} must list [path, label, class name] in {part}, got {shown(entry)}"
        )
    path, label, name = entry
    return _inside(path, file), label, name


def _inside(path: str, file: Path) -> str:
    """Return a path below the image folder."""
    pure = PurePosixPath(path)
    if not path or "\0" in path or pure.is_absolute() or ".." in pure.parts:
        raise ValueError(
            f"data: {file} must name paths below the folder of the pictures, got {shown(path)}"
        )
    return pure.as_posix()


# ---- lists of variants -------------------------------------------------------------------------


def _of_variants(folder: Path) -> Content:
    names = _lines(folder / VARIANTS)
    labels = {name: label for label, name in enumerate(names)}
    if len(labels) < len(names):
        raise ValueError(f"data: {folder / VARIANTS} names a class twice")
    splits: dict[str, Listing] = {}
    for part, list_file in VARIANT_LISTS.items():
        splits[part] = Listing()
        for line in _lines(folder / list_file):
            picture, _, name = line.partition(" ")
            if name not in labels:
                raise ValueError(
                    f"data: {folder / list_file} has the class {name!r}, which {VARIANTS} lacks"
                )
            splits[part].add(_inside(f"{picture}.jpg", folder / list_file), labels[name])
    trained = set(splits["train"].labels)
    if lacking := [name for name, label in labels.items() if label not in trained]:
        raise ValueError(
            f"data: {folder / VARIANT_LISTS['train']} lacks pictures of {some(lacking)}"
        )
    return Content(names, splits)


# ---- folders per class -------------------------------------------------------------------------


def _of_folders(images: Path, names_file: Path, spec: CoOpSet) -> Content:
    """List ImageNet or one of its variants, whose labels follow the sorted folder names."""
    spoken = _read_classnames(names_file)
    places = {"test": images}
    if not spec.test_only:
        both = {part: images / part for part in ("train", "val")}
        places = {part: place for part, place in both.items() if place.is_dir()}
    first = next(iter(places.values()))
    if spec.layout == "index":
        ids, folders = list(spoken), [str(label) for label in range(len(spoken))]
        if absent := [name for name in folders if not (images / name).is_dir()]:
            raise FileNotFoundError(
                f"data: {images} lacks {len(absent)} of the folders 0 to {len(folders) - 1}: "
                f"{some(absent)}; there must be one for each line of {names_file}"
            )
    else:
        ids = folders = _subfolders(first)
        for place in places.values():
            if differing := sorted(set(_subfolders(place)) ^ set(folders)):
                raise ValueError(
                    f"data: {first} and {place} have different class folders: only one of them "
                    f"has {some(differing)}"
                )
    if not folders:
        raise ValueError(f"data: {first} must have one folder of pictures per class, but has none")
    if nameless := [wnid for wnid in ids if wnid not in spoken]:
        raise ValueError(f"data: {names_file} has no name for the class folders {some(nameless)}")
    if len(ids) < len(spoken):
        log.warning(
            "data: %s%s has %d of the %d classes of ImageNet; Data.mask has their labels there",
            PREFIX,
            spec.name,
            len(ids),
            len(spoken),
        )
    label_of = {wnid: label for label, wnid in enumerate(sorted(spoken))}
    splits = {part: _listed(images, place, folders) for part, place in places.items()}
    if "val" in splits:  # CoOp tests on it
        splits["test"] = splits["val"]
    return Content([spoken[i] for i in ids], splits, tuple(label_of[i] for i in ids))


def _listed(images: Path, place: Path, folders: Sequence[str]) -> Listing:
    """List the pictures of class folders; by name, where CoOp has the file system's order."""
    out = Listing()
    for label, name in enumerate(folders):
        files = sorted(file.name for file in (place / name).iterdir() if is_picture(file.name))
        if not files:
            raise ValueError(f"data: {place / name} has no pictures")
        prefix = (place / name).relative_to(images).as_posix()
        for file in files:
            out.add(f"{prefix}/{file}", label)
    return out


def _classnames_file(root: Path, folder: Path) -> Path:
    """Return the data set's own list of names, or that of ImageNet."""
    own = folder / CLASSNAMES
    return own if own.is_file() else root / "imagenet" / CLASSNAMES


def _read_classnames(file: Path) -> dict[str, str]:
    """Read lines of a WordNet ID and a name, in their order."""
    out: dict[str, str] = {}
    for line in _lines(file):
        wnid, _, name = line.partition(" ")
        if not name:
            raise ValueError(
                f"data: {file} must have lines such as 'n01440764 tench', got {line!r}"
            )
        if wnid in out:
            raise ValueError(f"data: {file} has two names for {wnid}: {out[wnid]!r} and {name!r}")
        out[wnid] = name
    return out


def _subfolders(place: Path) -> list[str]:
    return sorted(
        entry.name for entry in place.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"data: {file} is not a UTF-8 text file") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"data: {file} is empty")
    return lines
