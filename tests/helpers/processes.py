"""Processes of their own that don't wait for the libraries' imports, which take most of the time.

Each forks from one that has imported torch and open_clip, but not fastprompt.
"""

import contextlib
import io
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

_CONTEXT: Any = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
_CONTEXT.set_forkserver_preload(["torch", "open_clip"])


def start(function: Callable[..., object], *arguments: object) -> BaseProcess:
    """A process that calls the function, which must be importable."""
    process = _CONTEXT.Process(target=function, args=arguments)
    process.start()
    return process


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
