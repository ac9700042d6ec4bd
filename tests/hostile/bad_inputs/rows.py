"""The form of a row, and rows for an argument of a common kind."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastprompt import FrozenCLIP
from fastprompt.data import ImageTensors

NAN, INF = float("nan"), float("inf")
DIGITS = 10**5000  # Python refuses to write it


@dataclass(frozen=True)
class World:
    """What the rows share. Nothing in it may be changed by a row.

    Attributes:
        clip: a small CLIP with random weights.
        images, labels: two images of three classes, and their labels.
        data: the same as a data set of uint8 images.
        place: an empty folder in which a row may create its files, before it calls the library;
            it exists if the row uses it.
        runs: a folder with a run that has results, ``nap``, and one that can be loaded, ``tuned``.
    """

    clip: FrozenCLIP
    images: Tensor
    labels: Tensor
    data: ImageTensors
    place: Path
    runs: Path

    @property
    def folder(self) -> Path:
        """`place`, created."""
        self.place.mkdir(exist_ok=True)
        return self.place

    @staticmethod
    def model(images: Tensor) -> Tensor:
        """A classifier of three classes."""
        return images.flatten(1)[:, :3]

    def file(self, name: str, content: bytes | str = b"") -> Path:
        """Create a file."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path


Call = Callable[[World], object]


@dataclass(frozen=True)
class Row:
    """An invalid input.

    Attributes:
        id: the test's name.
        call: a call of the library; or the arguments of the command line, or a function that
            returns them.
        words: what the message must contain; the first is the argument's name.
    """

    id: str
    call: Call | Sequence[str]
    words: tuple[str, ...]
    command_line: bool = False


def row(id: str, call: Call, *words: str) -> Row:
    """A row that calls the library."""
    return Row(id, call, words)


def line(id: str, arguments: Sequence[str] | Call, *words: str) -> Row:
    """A row that calls ``fastprompt`` with arguments."""
    return Row(f"fastprompt-{id}", arguments, words, command_line=True)


# ---- arguments of a common kind ----------------------------------------------------------------

COUNTS: Mapping[str, Any] = {
    "a string": "3",
    "a fraction": 2.5,
    "True": True,
    "a list": [1],
    "NaN": NAN,
    "negative": -1,
    "zero": 0,
    "2**63": 2**63,
    "10**30": 10**30,
    "5000 digits": DIGITS,
}
SEEDS = {**{k: v for k, v in COUNTS.items() if k != "zero"}, "None": None, "2**32": 2**32}
DISTANCES: Mapping[str, Any] = {
    "words": "four",
    "a division by zero": "4/0",
    "an underscore": "1_0/255",
    "hexadecimal": "0x1",
    "negative": "-1/255",
    "NaN": NAN,
    "infinite": INF,
    "whole pixels": 4,
    "True": True,
    "bytes": b"4/255",
    "10**400": 10**400,
}
NUMBERS: Mapping[str, Any] = {
    "a string": "0.1",
    "None": None,
    "True": True,
    "a list": [0.1],
    "NaN": NAN,
    "infinite": INF,
    "negative": -1,
    "1e308": 1e308,
    "10**400": 10**400,
    "a tensor": torch.tensor(0.1),
}
FLAGS: Mapping[str, Any] = {"a string": "yes", "1": 1, "None": None, "a list": [True]}
CHOICES: Mapping[str, Any] = {"unknown": "unheard of", "empty": "", "a number": 3, "a list": ["x"]}
TEXTS: Mapping[str, Any] = {"a number": 3, "a surrogate": "a\ud800", "a NUL": "a\0b"}
PATHS: Mapping[str, Any] = {"empty": "", "a NUL": "a\0b", "a number": 3, "bytes": b"a"}


def each(
    what: str,
    name: str,
    call: Callable[[World, Any], object],
    values: Mapping[str, Any],
    *words: str,
    without: Sequence[str] = (),
) -> Iterator[Row]:
    """Rows of one argument of ``what``, one for each of ``values`` but those in ``without``."""
    for kind, value in values.items():
        if kind not in without:
            yield row(f"{what}-{name}-{kind}", lambda w, value=value: call(w, value), name, *words)
