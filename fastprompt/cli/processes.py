"""``fastprompt tune`` in several processes, which ``torchrun`` has started."""

import contextlib
import datetime
import os
import platform
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from .._utils.distributed import add_up_

_WAIT = datetime.timedelta(days=7)  # for the first process, which may read or compute for hours
_FIRST = 1.0  # seconds that others leave the first process to print an error of all
_SHOWN = (ValueError, TypeError, OSError, RuntimeError, FloatingPointError, ImportError)
_LOST = 5.0  # seconds in which torchrun ends the processes that another one's end has disturbed


def run_together(command: str, call: Callable[[], int]) -> int:
    """Run ``call`` as one of the processes; only the first one prints.

    An error is printed by one of the processes: by the first one if all have it, else by the
    one that has it, with its number and host. torchrun ends the others.

    Raises:
        ValueError: ``command`` runs in a single process.
    """
    if command != "tune":  # before the others are waited for
        if os.environ["RANK"] != "0":
            return 2
        raise ValueError(
            f"command: {command} runs in one process, got {os.environ['WORLD_SIZE']}: start it "
            "without torchrun"
        )
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, count = next(rendezvous("env://", timeout=_WAIT))
    group = PrefixStore("group", store)
    dist.init_process_group(store=group, rank=rank, world_size=count, timeout=_WAIT)
    own = int(os.environ.get("LOCAL_RANK", "0"))
    if own < torch.cuda.device_count():
        torch.cuda.set_device(own)
    try:
        with contextlib.nullcontext() if rank == 0 else _silent():
            code = call()
        leave()
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        if _is_ours(error, store, rank):
            if rank and isinstance(error, _SHOWN):
                raise RuntimeError(f"process {rank} on {platform.node()}: {error}") from error
            raise
        time.sleep(_LOST)
        return 2
    return code


def leave() -> None:
    """Leave the group: what follows runs in each process by itself."""
    if dist.is_initialized():
        add_up_(torch.zeros(()))  # all are here
        dist.destroy_process_group()


def own_device(device: torch.device) -> torch.device:
    """Return this process's GPU by LOCAL_RANK if several processes run on GPUs.

    Raises:
        ValueError: the device names one GPU for all.
    """
    if not dist.is_initialized() or device.type != "cuda":
        return device
    if str(device) != device.type:
        raise ValueError(
            f"device must be cpu or cuda with several processes, got {str(device)!r}: each takes "
            "the GPU of its LOCAL_RANK"
        )
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _is_ours(error: BaseException, store: Any, rank: int) -> bool:
    """Return whether this process prints the error: that which fails first does."""
    if isinstance(error, SystemExit) and not error.code:
        return True
    # a collective also fails because another process has ended
    time.sleep(_LOST if isinstance(error, RuntimeError) else _FIRST if rank else 0)
    try:
        return int(store.add("failed", 1)) == 1
    except RuntimeError:  # the store has ended with the process that kept it
        return False


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield
