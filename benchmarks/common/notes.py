"""Results that are kept the moment they are known: lines of one file.

A program that is stopped at its time limit keeps everything it has noted.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from . import environment


def note(name: str, value: Any) -> None:
    """Append a line to the file that the environment variable names, and flush it to the disk.

    Without the variable nothing is written. Several processes may append to the same file.
    """
    if path := os.environ.get(environment.NOTES):
        task = os.environ.get(environment.TASK)
        append(Path(path), {"task": task, "name": name, "value": value})


def append(path: Path, line: dict[str, Any]) -> None:
    """Append one line of JSON and flush it to the disk."""
    text = json.dumps({"at": round(time.time(), 1), **line}, default=str) + "\n"
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines, without a last one that was cut off."""
    out = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            out.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return out
