"""The data set `photos`: pictures of Caltech101 at 64 pixels, which the package contains.

100 classes, 10 to 16 training, 4 validation and 8 test pictures of each, from CoOp's splits. The
training pictures are those that the bundled models of photographs have not seen. License and
attribution are in ``fastprompt/assets/photos.LICENSE.txt``.
"""

import io
import json
import zipfile
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path

import torch

from .._utils.checks import check_choice
from .coop_layouts import Content, read_split, without_suffix
from .coop_sets import SETS
from .encoded import EncodedImages
from .splits import Form, Source, Split

NAME = "photos"
SIZE = 64  # of the shorter side of the pictures
MODELS = ("tiny-photos", "tiny-photos-robust")  # which have seen the rest of the training split
_FILE, _SPEC = "photos.zip", SETS["Caltech101"]


def photos_source() -> Source:
    """Return the data set as `load_data` uses it."""
    return Source(
        list(_content().classnames), _read, (_SPEC.template,), "part of CoOp's splits", size=SIZE
    )


def unseen_of_caltech(model: str) -> frozenset[str]:
    """Return the training pictures of CoOp's Caltech101 that a bundled model has not seen.

    The pictures are named as in CoOp's split file, without suffixes.

    Raises:
        ValueError: ``model`` is not a bundled model of photographs.
    """
    check_choice(model, "unseen_by", MODELS)
    return frozenset(without_suffix(name) for name in _content().splits["train"].names)


class _ZippedImages(EncodedImages):
    """Pictures of the zip file, which are all in memory: processes cannot share an open file."""

    def __init__(self, names: Sequence[str], labels: Sequence[int], form: Form) -> None:
        super().__init__(labels, form)
        self._names = list(names)
        with _archive() as archive:
            self._contents = [archive.read(_below(name)) for name in self._names]

    def content(self, row: int) -> bytes:
        return self._contents[row]

    def place(self, row: int) -> Path:
        return Path(_FILE) / self._names[row]

    def names(self, rows: Sequence[int]) -> list[str]:
        """Return CoOp's names of some pictures, with the suffix ``.webp``."""
        return [self._names[row] for row in rows]


def _read(split: str, form: Form) -> Split:
    found = _content().splits[split]
    images = _ZippedImages(found.names, found.labels, form)
    return images, torch.tensor(found.labels, dtype=torch.int64)


@cache
def _content() -> Content:
    with _archive() as archive:
        content = json.loads(archive.read(f"{_SPEC.folder}/{_SPEC.split}"))
    return read_split(content, Path(_FILE) / _SPEC.split, _SPEC.renamed)


def _below(name: str) -> str:
    return f"{_SPEC.folder}/{_SPEC.images}/{name}"


def _archive() -> zipfile.ZipFile:
    data = resources.files("fastprompt.assets").joinpath(_FILE).read_bytes()
    return zipfile.ZipFile(io.BytesIO(data))
