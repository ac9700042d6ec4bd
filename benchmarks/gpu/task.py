"""What needs a GPU, one task at a time: run, with its result in a file, and known again."""

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
    """Attributes:

    name: of the result file.
    about: what it shows.
    seconds: how long it takes at most, compilation included: below ten minutes.
    run: measures; its result goes into the file.
    """

    name: str
    about: str
    seconds: int
    run: Callable[[], dict[str, Any]]


def code_digest() -> str:
    """SHA-256 over library and benchmarks: what a result was measured with."""
    digest = hashlib.sha256()
    for folder in ("fastprompt", "kernels", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            relative = path.relative_to(ROOT).as_posix()
            if not relative.startswith("fastprompt/kernels/"):  # a link to kernels/
                digest.update(relative.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def finished(task: Task, digest: str, results: Path = RESULTS) -> Path | None:
    """The file of a result of this code, on any card."""
    for path in sorted(results.glob(f"*/gpu-{task.name}.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["code"] == digest and "error" not in result:
            return path
    return None


def run_task(task: Task, digest: str, out: Path) -> dict[str, Any]:
    """Run and write at once; an error is a result, too: the others go on."""
    began = time.perf_counter()
    try:
        found: dict[str, Any] = {"result": task.run()}
    except Exception:  # one failure must not cost the other measurements
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
    except ValueError:  # a NaN, which JSON has no word for
        found = {**found, "result": None, "error": f"not finite: {found.pop('result')!r}"}
        write_json(path, found)
    return found
