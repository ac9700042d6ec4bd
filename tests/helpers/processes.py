"""Processes of their own that don't wait for the libraries' imports, which take most of the time.

Each forks from one that has imported torch and open_clip, but not fastprompt.
"""

import contextlib
import io
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

POSIX = os.name == "posix"  # Windows forks no process
_CONTEXT: Any = multiprocessing.get_context("forkserver" if POSIX else "spawn")
if POSIX:
    _CONTEXT.set_forkserver_preload(["torch", "open_clip"])


def start(function: Callable[..., object], *arguments: object) -> BaseProcess:
    """A process that calls the function, which must be importable."""
    process = _CONTEXT.Process(target=function, args=arguments)
    process.start()
    return process


@contextlib.contextmanager
def locking(folder: Path, then: Callable[[], object] | None = None) -> Iterator[int]:
    """A process that holds the lock of a folder until it is killed; its number."""
    if not POSIX:
        pytest.skip("needs os.fork")
    from fastprompt._utils.locks import locked

    here, there = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            with locked(folder, "out"):
                os.write(there, b"1")
                (then or signal.pause)()
        finally:
            os._exit(1)
    try:
        os.close(there)
        assert os.read(here, 1) == b"1"
        yield pid
    finally:
        os.close(here)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _run(code: str, to: Any) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(code, {})
    to.send(said.getvalue().strip())


def python(code: str) -> str:
    """What the code prints, run where fastprompt was not imported."""
    here, there = _CONTEXT.Pipe(duplex=False)
    process = start(_run, code, there)
    process.join()
    assert process.exitcode == 0, "see the process's standard error"
    return here.recv()
