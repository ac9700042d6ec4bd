"""The progress record from which an interrupted evaluation resumes."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._utils.files import append_line, write_bytes
from .._utils.hashing import digest_json

Unit = tuple[str, ...]
FLAGS = FELL, STANDS, STALLED = "0", "1", "?"


class Record:
    """Outcomes by unit, one line each in ``progress.jsonl``, or only in memory.

    The first line identifies the evaluation. Each further line has a digest of the evaluation, the
    line's position and its content. A last line that was cut off by a crash is dropped, and its
    unit runs again; any other damage is an error.

    Args:
        path: the file; None writes no file.
        plan: identity of the evaluation: models, images, attacks, seeds.
        resume: resume from the outcomes in the file.

    Raises:
        FileExistsError: the folder holds outcomes, and ``resume`` is not set.
        ValueError: the file is damaged, was changed, or belongs to another evaluation.
    """

    def __init__(self, path: Path | None, plan: dict[str, Any], *, resume: bool = False) -> None:
        self.path = path
        self.known: dict[Unit, dict[str, Any]] = {}
        if path is None:
            return
        self.key = digest_json(plan)
        begun = path.exists() and path.stat().st_size > 0
        if not resume and (begun or (path.parent / "result.json").exists()):
            raise FileExistsError(
                f"out: {path.parent} already holds an evaluation; resume it, or choose a new folder"
            )
        if begun:
            self._read(path)
        else:
            write_bytes(path, (json.dumps({"key": self.key, "plan": plan}) + "\n").encode())

    def _read(self, path: Path) -> None:
        *lines, rest = path.read_bytes().split(b"\n")
        rows = [_parse(line) for line in lines]
        first = rows[0] if rows else {}
        if first.keys() != {"key", "plan"}:
            raise self._error("its first line is damaged")
        if first["key"] != self.key:
            raise ValueError(
                f"resume: {path} belongs to another evaluation: the models, images, attacks or "
                "seeds differ, or an earlier version started it; choose a new folder"
            )
        if digest_json(first["plan"]) != self.key:
            raise self._error("its first line was changed")
        for number, row in enumerate(rows[1:], start=2):
            unit: Any = row.get("unit")
            outcome: Any = row.get("outcome")
            if row.get("digest") != self._digest(number, unit, outcome):
                raise self._error(
                    f"line {number} is damaged, was changed, or is of an earlier version"
                )
            self.known[tuple(unit)] = outcome
        if rest:
            write_bytes(path, b"\n".join(lines) + b"\n")

    def _digest(self, number: int, unit: Any, outcome: Any) -> str:
        return digest_json([self.key, number, unit, outcome])

    def _error(self, what: str) -> ValueError:
        return ValueError(
            f"resume: {self.path} is not usable: {what}; restore it from a copy, or delete it to "
            "start over"
        )

    def outcome(self, unit: Unit, places: Sequence[int]) -> dict[str, Any] | None:
        """Return the recorded outcome of a unit, None if there is none.

        Raises:
            ValueError: the outcome is not one of the images at ``places``.
        """
        outcome = self.known.get(unit)
        if outcome is not None and (wrong := _misfit(outcome, places)):
            raise self._error(f"the outcome of {'/'.join(unit)} has an invalid {wrong}")
        return outcome

    def add(self, unit: Unit, outcome: dict[str, Any]) -> None:
        """Record the outcome of a unit."""
        self.known[unit] = outcome
        if self.path is not None:
            number = len(self.known) + 1
            row = {"unit": unit, "outcome": outcome}
            row["digest"] = self._digest(number, unit, outcome)
            append_line(self.path, json.dumps(row))


def _parse(line: bytes) -> dict[str, Any]:
    """Return the object in a line; empty if the line has none."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def _misfit(outcome: Any, places: Sequence[int]) -> str | None:
    """Return the name of an entry that is missing or does not fit ``places``; None if all fit."""
    if not isinstance(outcome, dict):
        return "type"
    counts = ["forwards", "gradients"]
    lists = ["predictions", "labels"]
    if "predictions" not in outcome:
        counts += ["zero", "nonfinite", "entries"]
        lists = [name for name in ("fell_at", "fooled_twin") if name in outcome]
        if outcome.get("places") != list(places):
            return "places"
        flags = outcome.get("flags")
        if not isinstance(flags, str) or len(flags) != len(places) or not set(flags) <= set(FLAGS):
            return "flags"
    for name in counts:
        if type(outcome.get(name)) is not int or outcome[name] < 0:
            return name
    for name in lists:
        values = outcome.get(name)
        if not isinstance(values, list) or len(values) != len(places):
            return name
        if not all(type(value) is int for value in values):
            return name
    seconds = outcome.get("seconds")
    return None if isinstance(seconds, int | float) and math.isfinite(seconds) else "seconds"
