"""A task that needs a GPU, and its result file with a digest of the code."""

import hashlib
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastprompt._utils.files import write_json
from fastprompt._utils.versions import versions

from ..common.paths import RESULTS, ROOT, card


@dataclass(frozen=True)
class Task:
    """A check or measurement that needs a GPU.

    Attributes:
        name: of the result file.
        about: short description.
        seconds: upper limit of its duration, including compilation; below ten minutes.
        run: measures and returns the result for the file.
    """

    name: str
    about: str
    seconds: int
    run: Callable[[], dict[str, Any]]


def code_digest() -> str:
    """Return the SHA-256 of library and benchmarks, which identifies the measured code."""
    digest = hashlib.sha256()
    for folder in ("fastprompt", "kernels", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            relative = path.relative_to(ROOT).as_posix()
            if not relative.startswith("fastprompt/kernels/"):  # a link to kernels/
                digest.update(relative.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def finished(task: Task, digest: str, results: Path = RESULTS) -> Path | None:
    """Return the file with a result of this code on any card, if there is one."""
    for path in sorted(results.glob(f"*/gpu-{task.name}.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["code"] == digest and "error" not in result:
            return path
    return None


def run_task(task: Task, digest: str, out: Path) -> dict[str, Any]:
    """Run a task and write its result; an error is recorded, and other tasks still run."""
    began = time.perf_counter()
    try:
        found: dict[str, Any] = {"result": task.run()}
    except Exception:  # a failure must not stop the other measurements
        found = {"error": traceback.format_exc()}
    finally:
        torch.cuda.empty_cache()
    found |= {
        "task": task.name,
        "about": task.about,
        "code": digest,
        "card": torch.cuda.get_device_name(),
        "seconds": round(time.perf_counter() - began, 1),
        "versions": versions(),
    }
    path = out / card() / f"gpu-{task.name}.json"
    try:
        write_json(path, found)
    except ValueError:  # a NaN, which JSON cannot represent
        found = {**found, "result": None, "error": f"not finite: {found.pop('result')!r}"}
        write_json(path, found)
    return found
