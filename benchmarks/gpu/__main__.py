"""Lists the checks and measurements that need a GPU, and runs the pending ones.

python -m benchmarks.gpu                        # lists which tasks have a result for this code
python -m benchmarks.gpu --pending              # runs those without, the most valuable first
python -m benchmarks.gpu --pending --seconds 540 --out FOLDER   # in a call of limited time
python -m benchmarks.gpu --collect quick.jsonl  # writes the result files of benchmarks/gpu/quick.sh

Each result file contains a digest of the sources: after a change of the code its task is pending
again. Without a GPU, tasks are only listed.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser

from ..common.paths import RESULTS
from .task import code_digest, collect, finished, measured, save
from .tasks import TASKS


def main(
    pending: bool = False,
    only: list[str] | None = None,
    seconds: int = 540,
    out: Path | None = None,
    collected: Path | None = None,
) -> int:
    """List the tasks, or run those that have no result yet.

    Args:
        pending: run tasks without a result, the most valuable first.
        only: run these tasks, with or without a result.
        seconds: start no task that may end later than this.
        out: folder for results; default ``benchmarks/results``.
        collected: write the result files of this file of `benchmarks.gpu.quick` instead.
    """
    if collected:
        print("written:", *collect(collected, out or RESULTS))
        return 0
    began, digest = time.perf_counter(), code_digest()
    unknown = set(only or ()) - {task.name for task in TASKS}
    if unknown:
        raise SystemExit(
            f"unknown task {sorted(unknown)[0]!r}; python -m benchmarks.gpu lists them"
        )
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
            print(f"not started for lack of time: {task.name}")
            continue
        found = save(measured(task, digest), out or RESULTS)
        failed += "error" in found
        print(f"== {task.name}: {found['seconds']} s", flush=True)
        print(found.get("error") or json.dumps(found["result"], indent=1), flush=True)
    return 1 if failed else 0


def arguments() -> dict[str, Any]:
    """Parse the command line."""
    parser = ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--pending", action="store_true", help="run tasks without a result")
    parser.add_argument("--only", nargs="+", help="run these, with or without a result")
    parser.add_argument("--seconds", type=int, default=540, help="start no task that may end later")
    parser.add_argument("--out", type=Path, help="folder for results; default: benchmarks/results")
    parser.add_argument(
        "--collect", dest="collected", type=Path, help="write the result files of quick.sh's file"
    )
    return parser.parse_args().as_dict()


if __name__ == "__main__":
    sys.exit(main(**arguments()))
