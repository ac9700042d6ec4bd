"""Every check and measurement that needs a GPU: what is pending, and a way to run it in chunks.

python -m benchmarks.gpu                        # what has a result for this code, what has none
python -m benchmarks.gpu --pending              # run what has none, the most valuable first
python -m benchmarks.gpu --pending --seconds 540 --out FOLDER   # in a call of bounded time

A result belongs to the code that it was measured with: each file holds a digest of the sources, and
a change makes it pending again. Without a GPU the list is all there is.
"""

import hashlib
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


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


def card() -> str:
    """The GPU's name, as a folder name."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no-gpu"
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def finished(task: Task, digest: str, results: Path = RESULTS) -> Path | None:
    """The file of a result of this code, on any card."""
    for path in sorted(results.glob(f"*/gpu-{task.name}.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["code"] == digest and "error" not in result:
            return path
    return None


def run_task(task: Task, digest: str, out: Path) -> dict[str, Any]:
    """Run and write at once; an error is a result, too: the others go on."""
    from fastprompt._files import write_json
    from fastprompt.runs import versions

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


def main(
    pending: bool = False,
    only: list[str] | None = None,
    seconds: int = 540,
    out: Path | None = None,
) -> int:
    """List the tasks, or run those that have no result yet.

    Args:
        pending: run them, the most valuable first.
        only: run these, whether they have a result or not.
        seconds: start nothing that might end later than that.
        out: folder for results; by default this one's ``results``.
    """
    from .gpu_tasks import TASKS

    began, digest = time.perf_counter(), code_digest()
    unknown = set(only or ()) - {task.name for task in TASKS}
    if unknown:
        raise SystemExit(f"unknown task {sorted(unknown)[0]!r}: see python -m benchmarks.gpu")
    todo = []
    for task in TASKS:
        path = finished(task, digest)
        chosen = task.name in only if only else path is None
        todo += [task] if chosen else []
        state = "pending" if path is None else path.parent.name
        print(f"{task.name:<18}{state:<18}{task.seconds:>4} s  {task.about}")
    if not (pending or only):
        return 0
    if not torch.cuda.is_available():
        print(f"no GPU here: {len(todo)} of {len(TASKS)} tasks stay pending")
        return 0
    failed = 0
    for task in todo:
        if time.perf_counter() - began + task.seconds > seconds:
            print(f"left for the next call: {task.name}")
            continue
        found = run_task(task, digest, out or RESULTS)
        failed += "error" in found
        print(f"== {task.name}: {found['seconds']} s", flush=True)
        print(found.get("error") or json.dumps(found["result"], indent=1), flush=True)
    return 1 if failed else 0


def arguments() -> dict[str, Any]:
    """From the command line."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--pending", action="store_true", help="run what has no result yet")
    parser.add_argument("--only", nargs="+", help="run these, whether they have a result or not")
    parser.add_argument("--seconds", type=int, default=540, help="start nothing that may end later")
    parser.add_argument("--out", type=Path, help="folder for results; default: benchmarks/results")
    return parser.parse_args().as_dict()


if __name__ == "__main__":
    sys.exit(main(**arguments()))
