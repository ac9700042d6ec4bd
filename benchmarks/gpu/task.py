"""A task that needs a GPU, and its result file with a digest of the code."""

import hashlib
import json
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastprompt._utils.files import write_json
from fastprompt._utils.versions import versions

from ..common.dry_run import DRY_RUN
from ..common.notes import read
from ..common.paths import RESULTS, ROOT, folder_name


@dataclass(frozen=True)
class Task:
    """A check or measurement that needs a GPU.

    Attributes:
        name: of the result file.
        about: short description.
        seconds: upper limit of its duration, including compilation; below ten minutes.
        run: measures and returns the result for the file.
        small: arguments of ``run`` in a dry run.
    """

    name: str
    about: str
    seconds: int
    run: Callable[..., dict[str, Any]]
    small: Mapping[str, Any] = field(default_factory=dict)


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


def measured(task: Task, digest: str, **arguments: Any) -> dict[str, Any]:
    """Run a task and return its record; an error is recorded, and other tasks still run."""
    began = time.perf_counter()
    arguments |= task.small if DRY_RUN else {}
    try:
        found: dict[str, Any] = {"result": task.run(**arguments)}
    except Exception:  # a failure must not stop the other measurements
        found = {"error": traceback.format_exc()}
    finally:
        torch.cuda.empty_cache()
    return found | {
        "task": task.name,
        "about": task.about,
        "arguments": arguments,
        "code": digest,
        "card": torch.cuda.get_device_name(),
        "seconds": round(time.perf_counter() - began, 1),
        "versions": versions(),
    }


def save(found: dict[str, Any], out: Path) -> dict[str, Any]:
    """Write a record to its file in the card's folder."""
    path = out / folder_name(found["card"]) / f"gpu-{found['task']}.json"
    try:
        write_json(path, found)
    except ValueError:  # a NaN, which JSON cannot represent
        found = {**found, "result": None, "error": f"not finite: {found.pop('result')!r}"}
        write_json(path, found)
    return found


def collect(notes: Path, out: Path) -> list[str]:
    """Write the result files of the tasks that a file of `benchmarks.gpu.quick` contains."""
    names = []
    for line in read(notes):
        record = line["value"] if line["name"] == "record" else {}
        if "result" in record and record["task"] != "compile":
            names.append(save(record, out)["task"])
    return names
