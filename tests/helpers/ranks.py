"""Several processes on this machine that form a group of torch.distributed, with gloo.

They fork from the calling one, which has imported everything and has made the models.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from fastprompt.cli import processes
from fastprompt.cli.main import main

DEADLINE = 50  # seconds


def together(count: int, folder: Path, function: Callable[[int], object]) -> list[str]:
    """Call ``function(rank)`` in so many processes; what each prints as its error, if it has one.

    If one hangs, all are ended, and this fails.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def run(rank: int) -> int:
        try:
            store = dist.FileStore(str(folder / "store"), count)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=count)
            function(rank)
            dist.barrier()
        except BaseException as caught:
            traceback.print_exc()
            (folder / f"error-{rank}").write_text(f"{type(caught).__name__}: {caught}")
        return 0

    codes = _ended([_forked(run, rank) for rank in range(count)])
    files = [folder / f"error-{rank}" for rank in range(count)]
    errors = [file.read_text() if file.exists() else "" for file in files]
    assert None not in codes, f"processes hang: {errors}"
    return errors


def commands(folder: Path, *lines: list[str]) -> list[tuple[int, str]]:
    """Run command lines of fastprompt as the processes of one group; exit codes and output.

    A process that another one's end disturbs is not ended by torchrun: it waits less for that.
    """
    # as by torchrun, the store is kept by the process that waits for the others
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    variables = {
        "WORLD_SIZE": str(len(lines)),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }

    def run(rank: int) -> int:
        os.environ |= {**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes._FIRST, processes._LOST = 0.5, 1.0
        handle = os.open(folder / f"output-{rank}", os.O_CREAT | os.O_TRUNC | os.O_RDWR)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        with open(1, "w", closefd=False) as out, open(2, "w", closefd=False) as err:
            sys.stdout, sys.stderr = out, err  # not pytest's
            return main(lines[rank])

    codes = _ended([_forked(run, rank) for rank in range(len(lines))])
    outputs = [(folder / f"output-{rank}").read_text() for rank in range(len(lines))]
    assert None not in codes, f"processes hang: {outputs}"
    return list(zip(codes, outputs, strict=True))  # type: ignore[arg-type]


def _forked(function: Callable[[int], int], rank: int) -> int:
    """Call the function in a process, whose exit code is what it returns."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        code = function(rank)
    finally:
        os._exit(code)


def _ended(pids: list[int]) -> list[int | None]:
    """Wait for processes, and end those that hang, whose code is None."""
    codes: dict[int, int | None] = dict.fromkeys(pids)
    end = time.monotonic() + DEADLINE
    while None in codes.values() and time.monotonic() < end:
        for pid in [pid for pid, code in codes.items() if code is None]:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    for pid in [pid for pid, code in codes.items() if code is None]:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return list(codes.values())
