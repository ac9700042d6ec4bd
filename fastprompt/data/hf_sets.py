"""Data sets of Hugging Face's library `datasets`, by name or loaded."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._utils.checks import first_difference, some
from .encoded import EncodedImages
from .listed import Listed
from .splits import SPLITS, Form, Source

log = logging.getLogger(__name__)

PREFIX = "hf:"
_OBJECT = "pass load_data the loaded data set instead of its name"


def is_loaded(name: object) -> bool:
    """Return whether ``name`` is a data set of `datasets`, or a mapping of these."""
    found = list(name.values()) if isinstance(name, Mapping) else [name]
    return bool(found) and all(type(one).__module__.split(".")[0] == "datasets" for one in found)


def named_source(name: str, templates: tuple[str, ...]) -> Source:
    """Return the data set ``hf:NAME``: a folder, or a name on the Hub, which may be downloaded.

    Raises:
        RuntimeError: `datasets` is not installed.
        FileNotFoundError, ValueError: `datasets` cannot load it, or as `loaded_source`.
    """
    own = name.removeprefix(PREFIX)
    if not own.strip():
        raise ValueError(f"data: {name!r} names no data set; pass {PREFIX}NAME or {PREFIX}FOLDER")
    library = _library()
    saved = any((Path(own) / file).is_file() for file in ("dataset_dict.json", "state.json"))
    try:
        loaded = library.load_from_disk(own) if saved else library.load_dataset(own)
    except Exception as error:  # of the library, the network or a file system
        kind = FileNotFoundError if isinstance(error, OSError) else ValueError
        raise kind(
            f"data: the library datasets cannot load {own!r} ({error}); if it needs other "
            f"arguments, {_OBJECT}"
        ) from error
    return loaded_source(loaded, templates, name)


def loaded_source(given: Any, templates: tuple[str, ...], title: str = "") -> Source:
    """Return a loaded ``Dataset``, or a ``DatasetDict`` or mapping of splits.

    Raises:
        TypeError: it is a stream.
        ValueError: it does not have one column of images and one of class labels, its splits have
            other names, columns or classes, or a row has no label.
    """
    library, title = _library(), title or f"the {type(given).__name__}"
    splits = _splits(given, title) if isinstance(given, Mapping) else {"train": given}
    names: list[str] = []
    images, labels = {}, {}
    for part, data in splits.items():
        if not isinstance(data, library.Dataset):
            raise TypeError(
                f"data: {title} is a stream ({type(data).__name__}), which has no rows to draw "
                "from; load it without streaming=True: its images stay on the disk"
            )
        if data.format["type"] == "custom":
            raise ValueError(
                f"data: {title} has a transform, which would be ignored; remove it with "
                "reset_format(), or save its images in another data set"
            )
        image = _column(data, library.Image, title, "cast_column('COLUMN', datasets.Image())")
        label = _column(data, library.ClassLabel, title, "class_encode_column('COLUMN')")
        own = list(data.features[label].names)
        if names and own != names:
            raise ValueError(
                f"data: the {part} split of {title} has other classes than the first: "
                f"{first_difference(own, names)}; use the same class names"
            )
        names = own
        plain = data.with_format(None)
        images[part] = plain.select_columns([image]).cast_column(image, library.Image(decode=False))
        labels[part] = _labels(plain.select_columns([label])[:][label], part, title)

    def opened(part: str, rows: Sequence[int], own: Sequence[int], form: Form) -> EncodedImages:
        return _RowImages(images[part], part, rows, own, form)

    return Source(names, Listed(title, names, labels, opened).read, templates)


class _RowImages(EncodedImages):
    """Rows of a data set with one column of images that are not decoded; Arrow reads each row."""

    def __init__(
        self, data: Any, part: str, rows: Sequence[int], labels: Sequence[int], form: Form
    ) -> None:
        super().__init__(labels, form)
        self._data, self._part, self._rows = data, part, list(rows)
        (self._column,) = data.column_names

    def content(self, row: int) -> bytes:
        found = self._data[self._rows[row]][self._column]
        if found is None:
            raise FileNotFoundError("the row has no image")
        return found["bytes"] or Path(found["path"]).read_bytes()

    def place(self, row: int) -> Path:
        return Path(f"{self._part} row {self._rows[row]}")

    def names(self, rows: Sequence[int]) -> list[str]:
        """Return the splits and numbers of some rows."""
        return [str(self.place(row)) for row in rows]


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise RuntimeError(
            f"data: data sets of Hugging Face need the package datasets ({error}): "
            "pip install 'fastprompt[datasets]'"
        ) from error
    return datasets


def _splits(given: Mapping[str, Any], title: str) -> dict[str, Any]:
    """Return the splits by their usual names, train first."""
    named: dict[str, str] = {}
    others = []
    for name in given:
        part = SPLITS.get(str(name).lower())
        if part is None:
            others.append(str(name))
        elif part in named:
            raise ValueError(
                f"data: {title} has two {part} splits, {named[part]!r} and {name!r}; pass one of "
                "them"
            )
        else:
            named[part] = name
    if others and named.keys() <= {"train"}:
        raise ValueError(
            f"data: {title} has the splits {some([str(name) for name in given])}; name them "
            f"train, validation and test, or pass one of them, loaded"
        )
    if others:
        log.warning("data: the splits %s of %s are ignored", some(others), title)
    return {part: given[named[part]] for part in ("train", "val", "test") if part in named}


def _column(data: Any, kind: type, title: str, remedy: str) -> str:
    """Return the name of the only column of a type."""
    found = [name for name, feature in data.features.items() if isinstance(feature, kind)]
    if len(found) == 1:
        return found[0]
    columns = ", ".join(
        f"{key}: {type(feature).__name__}" for key, feature in data.features.items()
    )
    raise ValueError(
        f"data: {title} must have one column of the type {kind.__name__}, got {len(found)} of the "
        f"columns {columns}; "
        + ("remove_columns() the others" if found else f"make one with {remedy}")
        + f", and {_OBJECT}"
    )


def _labels(values: Sequence[Any], part: str, title: str) -> Tensor:
    bad = next((i for i, value in enumerate(values) if value is None or value < 0), None)
    if bad is not None:
        raise ValueError(
            f"data: row {bad} of the {part} split of {title} has no label ({values[bad]}); leave "
            "such rows out with filter()"
        )
    return torch.tensor(values, dtype=torch.int64)
