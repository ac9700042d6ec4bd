"""Manifests: CSV or JSON Lines files that list pictures with their labels or class names."""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .encoded import FileImages
from .listed import Listed, class_names_of
from .splits import SPLITS, Form, Source

_COLUMNS = ("path", "label", "classname", "split")
_KINDS = (".csv", ".jsonl")
_ROW = "path, label or classname (or both), and, if the splits are given, split"


@dataclass(frozen=True)
class _Row:
    """A row of a manifest: ``label`` and ``classname`` are None if it has no such column."""

    line: int
    path: str
    label: int | None
    classname: str | None
    split: str | None


def is_manifest(name: str) -> bool:
    """Return whether a name is that of a manifest."""
    return Path(name).suffix.lower() in _KINDS


class Manifest:
    """A manifest, read and checked; the pictures are only looked for.

    Args:
        path: a ``.csv`` file with a header or a ``.jsonl`` file with one object per line. Its
            columns are ``path``; ``label``, ``classname`` or both; and ``split`` or none.
        root: the folder of relative paths. Default: that of the manifest.
        labeled: False if labels and class names may be missing, and pictures need not exist.

    Raises:
        FileNotFoundError: the manifest or a picture does not exist.
        ValueError: a row is wrong; the message has the number of its line, from 1.
    """

    def __init__(self, path: Path, root: Path | None, *, labeled: bool = True) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"data: the manifest {path} does not exist")
        self.path, self.folder, self._labeled = path, root or path.parent, labeled
        self.rows = [self._row(*found) for found in self._read()]
        if not self.rows:
            raise ValueError(f"data: {path} lists no pictures")
        self._check_alike()
        if not labeled:
            return
        self._check_files()
        self.named = self.rows[0].classname is not None
        self.classes = class_names_of(
            [row.label for row in self.rows],
            [row.classname for row in self.rows],
            lambda row, why: self.wrong(self.rows[row].line, why),
            str(path),
        )

    @property
    def files(self) -> list[Path]:
        """The pictures' files, in the order of the rows."""
        return [self.folder / row.path for row in self.rows]

    def source(self, templates: tuple[str, ...]) -> Source:
        """Return the data set as `load_data` uses it."""
        number = {name: label for label, name in enumerate(self.classes)}
        parts: dict[str, list[_Row]] = {}
        for row in self.rows:
            parts.setdefault(row.split or "train", []).append(row)

        def label_of(row: _Row) -> int:
            return number[row.classname or ""] if row.label is None else row.label

        def opened(part: str, rows: Sequence[int], labels: Sequence[int], form: Form) -> FileImages:
            files = [self.folder / parts[part][row].path for row in rows]
            return FileImages(files, labels, form, self.folder)

        labels: dict[str, torch.Tensor] = {
            part: torch.tensor([label_of(row) for row in parts[part]])
            for part in ("train", "val", "test")
            if part in parts
        }
        listed = Listed(str(self.path), self.classes, labels, opened)
        return Source(self.classes, listed.read, templates, named=self.named)

    # ---- rows ----------------------------------------------------------------------------------

    def _read(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yield the rows with the numbers of their lines."""
        try:
            text = self.path.read_text("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError(f"data: {self.path} is not a UTF-8 text file") from None
        lines = io.StringIO(text)  # not splitlines, for which U+2028 in a name ends a line
        yield from _csv(lines, self) if self.path.suffix.lower() == ".csv" else _json(lines, self)

    def wrong(self, line: int, why: str) -> ValueError:
        """Return an error for a line."""
        return ValueError(f"data: {self.path}, line {line}: {why}")

    def _row(self, line: int, given: Mapping[str, Any]) -> _Row:
        strange = [str(key) for key in given if key not in _COLUMNS]
        told = {"label", "classname"} & given.keys() or not self._labeled
        if strange or "path" not in given or not told:
            raise self.wrong(line, f"the columns must be {_ROW}; got {', '.join(map(str, given))}")
        for key in ("path", "classname", "split"):
            value = given.get(key, "-")
            if not isinstance(value, str) or not value.strip() or "\0" in value:
                raise self.wrong(line, f"{key} must be a text that is not empty, got {value!r}")
        split = given.get("split")
        if split is not None and split.strip().lower() not in SPLITS:
            raise self.wrong(line, f"split must be train, val or test, got {split!r}")
        return _Row(
            line,
            given["path"],
            self._label(line, given["label"]) if "label" in given else None,
            given["classname"].strip() if "classname" in given else None,
            None if split is None else SPLITS[split.strip().lower()],
        )

    def _label(self, line: int, given: Any) -> int:
        # isdecimal accepts the digits of all scripts; a long number is no label
        text = given.strip() if isinstance(given, str) else str(given)
        if isinstance(given, bool) or not (text.isascii() and text.isdecimal() and len(text) < 10):
            raise self.wrong(
                line,
                f"label must be a whole number from 0, got {given!r}; class names belong in a "
                "column classname",
            )
        return int(text)

    # ---- checks of all rows --------------------------------------------------------------------

    def _check_alike(self) -> None:
        first = self.rows[0]
        seen: dict[str, int] = {}
        for row in self.rows:
            if (row.split is None) != (first.split is None):
                raise self.wrong(row.line, "either all pictures or none have a split")
            place = os.path.normpath(row.path)
            if place in seen:
                raise self.wrong(row.line, f"{row.path!r} is in line {seen[place]} already")
            seen[place] = row.line

    def _check_files(self) -> None:
        lost = [row for row in self.rows if not (self.folder / row.path).is_file()]
        if lost:
            raise FileNotFoundError(
                f"data: {self.path}, line {lost[0].line}: there is no file {lost[0].path!r} in "
                f"{self.folder} ({len(lost)} of the {len(self.rows)} pictures are missing); pass "
                "the folder of the paths as root"
            )


def _csv(lines: Iterable[str], manifest: Manifest) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    try:
        for fields in reader:
            if not fields:
                continue
            if header is None:
                header = [name.strip() for name in fields]
                if len(set(header)) < len(header):
                    raise manifest.wrong(reader.line_num, f"a column is named twice: {header}")
                continue
            if len(fields) != len(header):
                raise manifest.wrong(
                    reader.line_num,
                    f"{len(fields)} values for the {len(header)} columns {', '.join(header)}",
                )
            yield reader.line_num, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise manifest.wrong(reader.line_num, f"not valid CSV ({error})") from None


def _json(lines: Iterable[str], manifest: Manifest) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise manifest.wrong(number, f"not valid JSON ({error})") from None
        if not isinstance(found, dict):
            raise manifest.wrong(number, f"must be a JSON object, got {line.strip()[:50]}")
        yield number, found
