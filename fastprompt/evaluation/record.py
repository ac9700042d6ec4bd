"""The progress record from which an interrupted evaluation resumes."""

import json
import os
from pathlib import Path
from typing import Any

from .._utils.files import write_bytes
from .._utils.hashing import digest_json

Unit = tuple[str, ...]


class Record:
    """Outcomes by unit, one line each in ``progress.jsonl``, or only in memory.

    The first line identifies the evaluation. A line truncated by a crash is dropped, and its unit
    runs again.

    Args:
        path: the file; None writes no file.
        plan: identity of the evaluation: models, images, attacks, seeds.
        resume: resume from the outcomes in the file.

    Raises:
        FileExistsError: the folder holds outcomes, and ``resume`` is not set.
        ValueError: the file is damaged or belongs to another evaluation.
    """

    def __init__(self, path: Path | None, plan: dict[str, Any], *, resume: bool = False) -> None:
        self.path = path
        self.known: dict[Unit, dict[str, Any]] = {}
        if path is None:
            return
        key = digest_json(plan)
        begun = path.exists() and path.stat().st_size > 0
        if not resume and (begun or (path.parent / "result.json").exists()):
            raise FileExistsError(
                f"out: {path.parent} already holds an evaluation; resume it, or choose a new folder"
            )
        if begun:
            self._read(path, key)
        else:
            write_bytes(path, (json.dumps({"key": key, "plan": plan}) + "\n").encode())

    def _read(self, path: Path, key: str) -> None:
        whole: list[bytes] = []
        for line in path.read_bytes().split(b"\n")[:-1]:  # a truncated line has no newline
            try:
                row = json.loads(line)
                if whole:
                    self.known[tuple(row["unit"])] = row["outcome"]
                else:
                    found = row["key"]
            except (ValueError, KeyError, TypeError):
                break
            whole.append(line)
            if found != key:
                raise ValueError(
                    f"resume: {path} belongs to another evaluation: the models, images, attacks or "
                    "seeds differ, or an earlier version started it; choose a new folder"
                )
        if not whole:
            raise ValueError(f"resume: {path} is damaged; delete it to start over")
        write_bytes(path, b"\n".join(whole) + b"\n")

    def add(self, unit: Unit, outcome: dict[str, Any]) -> None:
        """Record the outcome of a unit."""
        self.known[unit] = outcome
        if self.path is None:
            return
        line = json.dumps({"unit": unit, "outcome": outcome}) + "\n"
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
