"""The ladder's results, read from pytest-benchmark's JSON into rows."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastprompt._utils.files import read_json

FILE = "ladder.json"
# what extra_info says of the measurement and of the machine; all else in it is the group's size
MEASURED = (
    *("rung", "baseline", "ratio_range", "ceiling", "flops", "quartiles", "limit"),
    *("share_of_limit", "largest_error", "peak_bytes", "images_per_second", "clocks_after"),
)
MACHINE = (
    *("processor", "cores", "threads", "torch", "triton", "dtype", "freed_memory_kept"),
    *("card", "clocks", "driver"),
)
# without which two ratios are not the same quantity
SETTINGS = ("threads", "dtype")


@dataclass(frozen=True)
class Row:
    """A rung of a group.

    Attributes:
        group: ``<layer>/<what>/<size>``.
        rung: its name.
        baseline: the rung that ``ratio`` is of.
        seconds: one a round.
        ratio: how many times longer the baseline takes, of medians.
        ratio_range: least and most over the rounds.
        ceiling: the ratio by FLOPs; None where none are counted.
        share_of_limit: what it reaches of the machine's ``limit``, ``"matmul"`` or ``"copy"``.
        largest_error: against the baseline, norm-relative.
        size: what was computed: classes, batch, and so on.
        machine: the facts of `MACHINE`.
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
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def settings(self) -> Mapping[str, Any]:
        """What must be alike where two of its ratios are compared."""
        return {**self.size, **{key: self.machine.get(key) for key in SETTINGS}}


Groups = Mapping[str, Mapping[str, Row]]


def rows_of(entries: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The ladder's rows among pytest-benchmark's entries; others, without a baseline, are not."""
    return [_row(e) for e in entries if {"rung", "baseline"} <= set(e.get("extra_info", {}))]


def _row(entry: Mapping[str, Any]) -> Row:
    # through JSON: a run's own tuples are a file's lists
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
    """The rows of a file of ``pytest benchmarks --benchmark-only --benchmark-json FILE``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not one of pytest-benchmark's, holds no row of the ladder or one twice, or
            a ratio is not that of the seconds beside it.
    """
    found = read_json(path)
    if not isinstance(found.get("benchmarks"), list):
        raise ValueError(f"{path} has no list 'benchmarks': it is not pytest-benchmark's")
    rows = rows_of(found["benchmarks"])
    if not rows:
        raise ValueError(f"{path} holds no row of the ladder: no extra_info names a baseline")
    _check(rows, path)
    return rows


def _check(rows: Sequence[Row], path: Path) -> None:
    groups = by_group(rows)
    if sum(map(len, groups.values())) != len(rows):
        raise ValueError(f"{path} holds a rung of a group twice")
    for row in rows:
        base = groups[row.group].get(row.baseline)
        if base is None:  # its test was not chosen
            continue
        ratio = base.median / row.median
        # the clock that replays the seconds rounds them
        if abs(ratio - row.ratio) > 1e-6 * ratio:
            raise ValueError(
                f"{path}: {row.group} {row.rung}: its ratio is {row.ratio:.4g}, that of its "
                f"seconds {ratio:.4g}: the file was changed by hand"
            )


def by_group(rows: Sequence[Row]) -> Groups:
    """By group, then by rung, in the rows' order."""
    groups: dict[str, dict[str, Row]] = {}
    for row in rows:
        groups.setdefault(row.group, {})[row.rung] = row
    return groups


def committed(results: Path) -> dict[str, Groups]:
    """The groups of every machine under ``results`` that has a ladder, by the folder's name."""
    paths = sorted(results.glob(f"*/{FILE}"))
    return {path.parent.name: by_group(read(path)) for path in paths}
