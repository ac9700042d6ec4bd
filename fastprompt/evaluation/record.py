"""What an evaluation has done so far, so that one that was stopped goes on where it was."""

import json
import os
from pathlib import Path
from typing import Any

from .._utils.files import write_bytes
from .._utils.hashing import digest_json

Unit = tuple[str, ...]


class Record:
    """Outcomes by unit: a line each in ``progress.jsonl``, or in memory alone.

    The first line says of which evaluation they are. A line that a crash cut short is dropped, and
    its unit run again.

    Args:
        path: the file; None keeps nothing.
        plan: what the evaluation is: models, images, attacks, seeds.
        resume: go on with what stands in the file.

    Raises:
        FileExistsError: there are outcomes, and ``resume`` is not set.
        ValueError: they are of another evaluation.
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
                f"out: {path.parent} holds an evaluation: resume it, or choose a new folder"
            )
        if begun:
            self._read(path, key)
        else:
            write_bytes(path, (json.dumps({"key": key, "plan": plan}) + "\n").encode())

    def _read(self, path: Path, key: str) -> None:
        whole: list[bytes] = []
        for line in path.read_bytes().split(b"\n")[:-1]:  # what a crash cut short has no end
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
                    f"resume: {path} is of another evaluation: the models, images, attacks or "
                    "seeds differ, or an earlier version began it"
                )
        if not whole:
            raise ValueError(f"resume: {path} is damaged: remove it to begin anew")
        write_bytes(path, b"\n".join(whole) + b"\n")

    def add(self, unit: Unit, outcome: dict[str, Any]) -> None:
        """Keep what came out of a unit."""
        self.known[unit] = outcome
        if self.path is None:
            return
        line = json.dumps({"unit": unit, "outcome": outcome}) + "\n"
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
