"""A Ray cluster of simulated machines on this one, and small work for it."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastprompt.runners.on_ray import _QUIET, import_ray

STORE = 100 * 2**20  # bytes of each machine's object store


@contextlib.contextmanager
def cluster(machines: int = 2, *, connect: bool = True) -> Iterator[Any]:
    """So many machines with one processor each, to which this process is connected."""
    ray = import_ray()
    from ray.cluster_utils import Cluster

    own = {"num_cpus": 1, "object_store_memory": STORE}
    before = os.environ.get("PYTHONPATH", "")
    # workers import the tests' own modules, and Ray tells them only this process's folder
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    found = Cluster(initialize_head=True, head_node_args={**own, "include_dashboard": False})
    try:
        for _ in range(machines - 1):
            found.add_node(**own)
        if connect:
            quiet = {k: v for k, v in _QUIET.items() if k != "include_dashboard"}
            ray.init(address=found.address, **quiet)
        yield found
    finally:
        os.environ["PYTHONPATH"] = before
        ray.shutdown()
        found.shutdown()


class Squares:
    """Squares numbers; each computation appends a line to a file, of which all workers see one.

    Args:
        log: the file.
        slow: seconds of each item.
        kill: items whose worker is killed, the first time.
        always: items whose worker is always killed.
        wrong: items that raise an error.
        facts: what must be the same.
    """

    def __init__(
        self,
        log: Path,
        *,
        slow: float = 0.0,
        kill: tuple[int, ...] = (),
        always: tuple[int, ...] = (),
        wrong: tuple[int, ...] = (),
    ) -> None:
        self.log, self.slow = log, slow
        self.kill, self.always, self.wrong = kill, always, wrong

    def title(self, item: int) -> str:
        return f"the square of {item}"

    def facts(self) -> dict[str, str]:
        return {"settings": "squares"}

    def __call__(self, item: int) -> int:
        time.sleep(self.slow)
        mark = self.log.with_name(f"killed-{item}")
        if item in self.always or (item in self.kill and not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if item in self.wrong:
            raise KeyError(f"no square of {item}")
        with self.log.open("a") as file:
            file.write(f"{item} {os.getpid()}\n")
        return item * item
