"""Reads the ladder's results from pytest-benchmark's JSON into rows."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastprompt._utils.files import read_json

FILE = "ladder.json"
# keys of extra_info about measurement and machine; all others are the group's size
MEASURED = (
    *("rung", "baseline", "ratio_range", "ceiling", "flops", "quartiles", "limit"),
    *("share_of_limit", "largest_error", "peak_bytes", "images_per_second", "clocks_after"),
)
MACHINE = (
    *("processor", "cores", "threads", "torch", "triton", "dtype", "freed_memory_kept"),
    *("card", "clocks", "driver"),
)
# ratios are comparable only if these are equal
SETTINGS = ("threads", "dtype")


@dataclass(frozen=True)
class Row:
    """Result of one implementation (rung) in one group.

    Attributes:
        group: ``<layer>/<what>/<size>``.
        rung: name of the implementation.
        baseline: the implementation that ``ratio`` is relative to.
        seconds: one entry per round.
        ratio: the baseline's median time over this one's.
        ratio_range: least and most over the rounds.
        ceiling: the ratio of FLOPs; None if not counted.
        share_of_limit: of the machine's ``limit``, ``"matmul"`` or ``"copy"``.
        largest_error: norm-relative difference from the baseline.
        size: problem size: classes, batch, and so on.
        machine: the facts in `MACHINE`.
    """

    group: str
    rung: str
    baseline: str
    seconds: tuple[float, ...]
    ratio: float
    ratio_range: tuple[float, float]
    ceiling: float | None
    share_of_limit: float | None
    limit: str | None
    largest_error: float | None
    size: Mapping[str, Any]
    machine: Mapping[str, Any]

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings that must be equal for two ratios to be comparable."""
        return {**self.size, **{key: self.machine.get(key) for key in SETTINGS}}


Groups = Mapping[str, Mapping[str, Row]]


def rows_of(entries: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Return the ladder's rows of pytest-benchmark's entries; skip those without a baseline."""
    return [_row(e) for e in entries if {"rung", "baseline"} <= set(e.get("extra_info", {}))]


def _row(entry: Mapping[str, Any]) -> Row:
    # through JSON, which turns a run's tuples into lists, as in a file
    extra = json.loads(json.dumps(entry["extra_info"]))
    group, rung, baseline = entry["group"], extra["rung"], extra["baseline"]
    ratio = f"ratio_to_{baseline}"
    missing = {ratio, "ratio_range"} - set(extra)
    if missing:
        raise ValueError(f"{group} {rung}: extra_info has no {sorted(missing)[0]!r}")
    least, most = extra["ratio_range"]
    known = {*MEASURED, *MACHINE, ratio}
    return Row(
        group=group,
        rung=rung,
        baseline=baseline,
        seconds=tuple(entry["stats"]["data"]),
        ratio=extra[ratio],
        ratio_range=(least, most),
        ceiling=extra.get("ceiling"),
        share_of_limit=extra.get("share_of_limit"),
        limit=extra.get("limit"),
        largest_error=extra.get("largest_error"),
        size={key: value for key, value in extra.items() if key not in known},
        machine={key: extra[key] for key in MACHINE if key in extra},
    )


def read(path: Path) -> list[Row]:
    """Read a file written by ``pytest benchmarks --benchmark-only --benchmark-json FILE``.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not pytest-benchmark's, has no row of the ladder or a duplicate one, or a
            ratio does not match its seconds.
    """
    found = read_json(path)
    if not isinstance(found.get("benchmarks"), list):
        raise ValueError(f"{path} has no list 'benchmarks': not a pytest-benchmark file")
    rows = rows_of(found["benchmarks"])
    if not rows:
        raise ValueError(f"{path} has no row of the ladder: no extra_info has a baseline")
    _check(rows, path)
    return rows


def _check(rows: Sequence[Row], path: Path) -> None:
    groups = by_group(rows)
    if sum(map(len, groups.values())) != len(rows):
        raise ValueError(f"{path} has a rung of a group twice")
    for row in rows:
        base = groups[row.group].get(row.baseline)
        if base is None:  # its test was not selected
            continue
        ratio = base.median / row.median
        # replaying the seconds rounds them
        if abs(ratio - row.ratio) > 1e-6 * ratio:
            raise ValueError(
                f"{path}: {row.group} {row.rung}: ratio {row.ratio:.4g} does not match its "
                f"seconds, which give {ratio:.4g}: the file was edited"
            )


def by_group(rows: Sequence[Row]) -> Groups:
    """Group the rows by group, then by implementation, in their order."""
    groups: dict[str, dict[str, Row]] = {}
    for row in rows:
        groups.setdefault(row.group, {})[row.rung] = row
    return groups


def committed(results: Path) -> dict[str, Groups]:
    """Return the groups of every machine under ``results`` with a ladder, by folder name."""
    paths = sorted(results.glob(f"*/{FILE}"))
    return {path.parent.name: by_group(read(path)) for path in paths}
