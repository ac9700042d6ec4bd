"""Files of predictions: CSV, JSON Lines or Parquet; embeddings in an npz file."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from torch import Tensor

from .._utils.files import replacing

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Best:
    """The most probable classes of n pictures.

    Attributes:
        paths: the pictures' names.
        labels: int64 ``[n, top]``, the most probable class first.
        probabilities: float32 ``[n, top]``.
        features: float32 ``[n, D]``; None unless they were asked for.
    """

    paths: list[str]
    labels: Tensor
    probabilities: Tensor
    features: Tensor | None


def rows_of(best: Best, classnames: Sequence[str]) -> Iterator[Row]:
    """Yield a row per picture: path, then label, name and probability of each class.

    The columns of the second and the following classes end in ``_2`` and so on.
    """
    labels, shares = best.labels.tolist(), best.probabilities.tolist()
    for path, own, chances in zip(best.paths, labels, shares, strict=True):
        row: Row = {"path": path}
        for rank, (label, share) in enumerate(zip(own, chances, strict=True), 1):
            end = "" if rank == 1 else f"_{rank}"
            row[f"label{end}"], row[f"name{end}"] = label, classnames[label]
            row[f"probability{end}"] = _shortest(share)
        yield row


def _shortest(share: float) -> float:
    """Return the shortest decimal number that is the same float32."""
    return float(str(np.float32(share)))


def columns(top: int) -> list[str]:
    """Return the names of the columns of `rows_of`."""
    ends = ["", *(f"_{rank}" for rank in range(2, top + 1))]
    return ["path", *(f"{name}{end}" for end in ends for name in ("label", "name", "probability"))]


# ---- formats -----------------------------------------------------------------------------------


def _csv(file: IO[bytes], parts: Iterable[list[Row]], names: Sequence[str]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for rows in parts:
        writer.writerows(rows)
    text.flush()
    text.detach()  # else it would close the file


def _jsonl(file: IO[bytes], parts: Iterable[list[Row]], names: Sequence[str]) -> None:
    for rows in parts:
        file.writelines(f"{json.dumps(row)}\n".encode() for row in rows)


def _parquet(file: IO[bytes], parts: Iterable[list[Row]], names: Sequence[str]) -> None:
    arrow, parquet = _pyarrow()
    kinds = {"path": arrow.string(), "label": arrow.int64(), "name": arrow.string()}
    kinds["probability"] = arrow.float32()
    schema = arrow.schema([(name, kinds[name.partition("_")[0]]) for name in names])
    with parquet.ParquetWriter(file, schema) as writer:
        for rows in _together(parts, 1 << 16):
            writer.write_table(arrow.Table.from_pylist(rows, schema))


def _together(parts: Iterable[list[Row]], least: int) -> Iterator[list[Row]]:
    """Yield the rows of several parts at once: a group of rows in Parquet has a cost of its own."""
    rows: list[Row] = []
    for part in parts:
        rows += part
        if len(rows) >= least:
            yield rows
            rows = []
    if rows:
        yield rows


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise RuntimeError(
            "out: Parquet files need pyarrow: pip install 'fastprompt[parquet]', or write .csv or "
            ".jsonl"
        ) from None
    return pyarrow, pyarrow.parquet


_FORMATS: dict[str, Callable[[IO[bytes], Iterable[list[Row]], Sequence[str]], None]] = {
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}


def check_format(path: Path) -> None:
    """Raise unless files of this name can be written.

    Raises:
        ValueError: the name has another ending.
        RuntimeError: the package that the format needs is missing.
    """
    if path.suffix not in _FORMATS:
        raise ValueError(f"out must end in {', '.join(_FORMATS)}, got {path.name!r}")
    if path.suffix == ".parquet":
        _pyarrow()


def write_table(path: Path, parts: Iterable[Best], classnames: Sequence[str], top: int) -> None:
    """Write predictions atomically, in the format of the name's ending."""
    with replacing(path) as file:
        rows = (list(rows_of(part, classnames)) for part in parts)
        _FORMATS[path.suffix](file, rows, columns(top))


def write_embeddings(path: Path, parts: Callable[[], Iterable[Best]]) -> None:
    """Write ``paths`` ``[N]`` and ``embeddings``, float32 ``[N, D]``, atomically as an npz file.

    Args:
        parts: returns the parts from the first, twice: only one of them is in memory at a time.
    """
    names = [name for part in parts() for name in part.paths]
    width = max(part.features.shape[1] for part in parts() if part.features is not None)
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        # ZipInfo has a fixed date, so that equal contents give equal bytes
        with archive.open(zipfile.ZipInfo("paths.npy"), "w", force_zip64=True) as out:
            np.lib.format.write_array(out, np.array(names, dtype=str))
        with archive.open(zipfile.ZipInfo("embeddings.npy"), "w", force_zip64=True) as out:
            head = {"descr": "<f4", "fortran_order": False, "shape": (len(names), width)}
            np.lib.format.write_array_header_2_0(out, head)
            for part in parts():
                if part.features is not None:
                    out.write(part.features.numpy().astype("<f4").tobytes())
