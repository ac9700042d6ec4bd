"""Several processes on this machine that form a group of torch.distributed, with gloo.

They fork from the calling one, which has imported everything and has made the models.
"""

import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

DEADLINE = 50  # seconds


def together(count: int, folder: Path, function: Callable[[int], object]) -> list[str]:
    """Call ``function(rank)`` in so many processes; what each prints as its error, if it has one.

    If one hangs, all are ended, and this fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pids = [_fork(rank, count, folder, function) for rank in range(count)]
    end, left = time.monotonic() + DEADLINE, set(pids)
    try:
        while left and time.monotonic() < end:
            for pid in list(left):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    left.remove(pid)
            time.sleep(0.005)
        errors = [(folder / f"error-{rank}").read_text() for rank in range(count)]
        assert not left, f"processes hang: {errors}"
        return errors
    finally:
        for pid in left:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _fork(rank: int, count: int, folder: Path, function: Callable[[int], object]) -> int:
    error = folder / f"error-{rank}"
    error.write_text("")
    if pid := os.fork():
        return pid
    try:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        store = dist.FileStore(str(folder / "store"), count)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=count)
        function(rank)
        dist.barrier()
    except BaseException as caught:
        traceback.print_exc()
        error.write_text(f"{type(caught).__name__}: {caught}")
    finally:
        os._exit(0)
