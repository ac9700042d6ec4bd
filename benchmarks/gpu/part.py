"""One part of `quick.sh` in a process of its own: runs its tasks and notes every result.

python -m benchmarks.gpu.part step
"""

import contextlib
import logging
import os
import sys
from collections.abc import Sequence

from ..common import environment
from ..common.dry_run import DRY_RUN, fake_gpu
from ..common.notes import note
from .task import code_digest, measured
from .tasks import CACHES, SHORT, TASKS


class NotingHandler(logging.Handler):
    """Notes warnings with their tracebacks, such as that of a capture that failed."""

    def emit(self, record: logging.LogRecord) -> None:
        """Note one record."""
        note("log", self.format(record))


def run(names: Sequence[str]) -> int:
    """Run tasks one after another; return 1 if one failed."""
    by_name = {task.name: task for task in (*TASKS, CACHES)}
    logging.getLogger("fastprompt").addHandler(NotingHandler(logging.WARNING))
    digest, failed = code_digest(), 0
    for name in names:
        os.environ[environment.TASK] = name
        found = measured(by_name[name], digest, **SHORT.get(name, {}))
        note("record", found)
        print(f"== {name}: {found['seconds']} s", flush=True)
        print(found.get("error", ""), flush=True)
        failed += "error" in found
    return 1 if failed else 0


if __name__ == "__main__":
    with fake_gpu() if DRY_RUN else contextlib.nullcontext():
        sys.exit(run(sys.argv[1:]))
