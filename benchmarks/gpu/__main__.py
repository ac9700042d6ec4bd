"""Every check and measurement that needs a GPU: what is pending, and a way to run it in chunks.

python -m benchmarks.gpu                        # what has a result for this code, what has none
python -m benchmarks.gpu --pending              # run what has none, the most valuable first
python -m benchmarks.gpu --pending --seconds 540 --out FOLDER   # in a call of bounded time

A result belongs to the code that it was measured with: each file holds a digest of the sources, and
a change makes it pending again. Without a GPU the list is all there is.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser

from ..common.paths import RESULTS
from .task import code_digest, finished, run_task
from .tasks import TASKS


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
    parser = ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--pending", action="store_true", help="run what has no result yet")
    parser.add_argument("--only", nargs="+", help="run these, whether they have a result or not")
    parser.add_argument("--seconds", type=int, default=540, help="start nothing that may end later")
    parser.add_argument("--out", type=Path, help="folder for results; default: benchmarks/results")
    return parser.parse_args().as_dict()


if __name__ == "__main__":
    sys.exit(main(**arguments()))
