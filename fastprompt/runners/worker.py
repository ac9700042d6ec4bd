"""The process of a worker on a Ray cluster."""

from __future__ import annotations

import contextlib
import os
import platform
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .._utils.versions import versions


@dataclass(frozen=True)
class Failure:
    """An error of a worker.

    Attributes:
        error: its type and message, on one line.
        traceback: as Python prints it.
        where: the host and number of the process.
    """

    error: str
    traceback: str
    where: str


class Worker:
    """Has the work, and computes items one by one.

    Errors are returned, not raised: their classes may not exist, or not be sent, elsewhere.
    """

    def hello(self) -> tuple[str, dict[str, str]]:
        """Return the host and number of this process, and its versions."""
        return _where(), versions()

    def begin(self, work: Any, numerics: Mapping[str, Any]) -> Any:
        """Take the work and the settings of torch; return the facts of the work."""

        def start() -> Any:
            set_numerics(numerics)
            self.work = work
            return work.facts()

        return _tried(start)

    def do(self, item: Any) -> Any:
        """Return the result of an item."""
        return _tried(lambda: self.work(item))


def numerics(threads: int) -> dict[str, Any]:
    """Return this process's settings on which results depend, but for the threads of torch."""
    return {
        "folder": str(Path.cwd()),
        "threads": threads,
        "matmul": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def set_numerics(given: Mapping[str, Any]) -> None:
    """Set what `numerics` returned."""
    with contextlib.suppress(OSError):  # then relative paths are not found
        os.chdir(given["folder"])
    torch.set_num_threads(given["threads"])
    torch.set_float32_matmul_precision(given["matmul"])
    torch.use_deterministic_algorithms(given["deterministic"])


def _where() -> str:
    return f"{platform.node()} (process {os.getpid()})"


def _tried(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return Failure(said, traceback.format_exc(), _where())
