"""Dry run of the GPU programs on a CPU: the same code on a model of two layers.

The environment variable `FASTPROMPT_GPU_DRY_RUN=1` selects it. It moves every tensor to the CPU and
replaces torch's CUDA events, memory statistics and modes, so that each line of a GPU program runs
before a GPU is paid for. Its times mean nothing.
"""

import functools
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

from . import environment

DRY_RUN = os.environ.get(environment.DRY_RUN) == "1"


class HostEvent:
    """Takes the place of `torch.cuda.Event`, on the host's clock."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self) -> None:
        """Read the clock."""
        self.at = time.perf_counter()

    def elapsed_time(self, end: "HostEvent") -> float:
        """Return milliseconds, never zero."""
        return max(1e3 * (end.at - self.at), 1e-3)


def _nothing(*_: Any, **__: Any) -> None: ...


REPLACED: dict[str, Any] = {
    "Event": HostEvent,
    "get_device_name": lambda *_: "dry run",
    "memory_allocated": lambda *_: 0,
    "max_memory_allocated": lambda *_: 1,
    "synchronize": _nothing,
    "_sleep": _nothing,
    "empty_cache": _nothing,
    "reset_peak_memory_stats": _nothing,
    "set_sync_debug_mode": _nothing,
}


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Replace what the GPU programs use of `torch.cuda`; compilers generate no code."""
    with ExitStack() as stack:
        for name, value in REPLACED.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        traced = functools.partial(torch.compile, backend="eager")
        stack.enter_context(mock.patch.object(torch, "compile", traced))
        yield
