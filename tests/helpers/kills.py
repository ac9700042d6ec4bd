"""Runs in processes that are killed at random moments and in the middle of writes.

A process forks from the calling one, which has imported everything and has made the models.
"""

import json
import os
import random
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tqdm import tqdm

Run = Callable[[Path], object]  # starts what writes to the folder, or resumes it

WRITES = ("open", "fsync", "replace", "rename", "unlink", "mkdir", "rmdir")
CUT = 20  # bytes at most that a killed write lacks: less than a line of any log
TIMES = ("seconds", "tuning_seconds", "digest")  # digests of progress.jsonl include the seconds
DEADLINE = 120  # seconds


@dataclass(frozen=True)
class Strike:
    """When to kill: after some seconds, or at a moment of the writes.

    Moment 2 n is right before the n-th call of `WRITES`, where what an fsync is to flush is not
    yet whole, and 2 n + 1 right after it.
    """

    seconds: float = DEADLINE
    moment: int = -1
    missing: int = 1


def arm(strike: Strike, patch: pytest.MonkeyPatch) -> list[int]:
    """Let this process kill itself at the moment; the list grows with each call of `WRITES`."""
    calls: list[int] = []

    def watched(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            moment = 2 * len(calls)
            calls.append(moment)
            if moment == strike.moment:
                if name == "fsync":
                    size = os.fstat(arguments[0]).st_size
                    os.ftruncate(arguments[0], max(0, size - strike.missing))
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*arguments, **options)
            if moment + 1 == strike.moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for name in WRITES:
        patch.setattr(os, name, watched(name))
    return calls


def attempt(run: Run, folder: Path, strike: Strike) -> bool:
    """Run in a process; whether the strike hit it before it ended."""
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    output = folder.with_suffix(".output")
    pid = os.fork()
    if not pid:
        code = 1
        try:
            handle = os.open(output, os.O_CREAT | os.O_TRUNC | os.O_RDWR)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            arm(strike, pytest.MonkeyPatch())
            # torch replaces its pool here; two threads that use it first would collide
            torch.set_num_threads(torch.get_num_threads())
            # tqdm's lock spans forked processes: one killed within it would stop all later ones
            tqdm.set_lock(threading.RLock())
            run(folder)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    end = time.monotonic() + strike.seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        time.sleep(0.002)
    else:
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        assert strike.seconds < DEADLINE, f"hangs: {output.read_text()}"
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert status == 0, output.read_text()
    return False


def torture(run: Run, above: Path, kills: int, seed: str) -> None:
    """Kill a run so many times; whenever it is left to end, its files are those of a whole one.

    Each folder sees one to three kills. Seven in ten are at a moment of the writes.
    """
    whole, draw = above / "whole", random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        calls = arm(Strike(), patch)
        run(whole)  # here: what it imports, the processes need not
    wanted, moments = contents(whole), draw.sample(range(2 * len(calls)), 2 * len(calls))
    began = time.perf_counter()
    attempt(run, above / "again", Strike())
    assert contents(above / "again") == wanted
    seconds, done = time.perf_counter() - began, 0
    while done < kills:
        folder, strikes = above / f"killed-{done}", []
        for _ in range(draw.randint(1, 3)):
            if draw.random() < 0.7:
                strike = Strike(moment=moments[done % len(moments)], missing=draw.randint(1, CUT))
            else:
                strike = Strike(draw.uniform(0, seconds))
            strikes.append(strike)
            if done == kills or not attempt(run, folder, strike):
                break
            done += 1
        assert not attempt(run, folder, Strike())
        found = contents(folder)
        about = f"seed {seed!r}, after {strikes}"
        assert found.keys() == wanted.keys(), about
        differ = {k: (wanted[k], found[k]) for k in wanted if found[k] != wanted[k]}
        assert not differ, f"{about}: {differ!s:.2000}"
        shutil.rmtree(folder)


def contents(folder: Path) -> dict[str, Any]:
    """Every file of a folder, by its path, but for times and the folder's own name."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): _content(path, folder) for path in files}


def _content(path: Path, folder: Path) -> Any:
    data = path.read_bytes().replace(str(folder).encode(), b"FOLDER")
    if path.suffix == ".json":
        return timeless(json.loads(data))
    if path.suffix == ".jsonl":
        return [timeless(json.loads(line)) for line in data.splitlines()]
    # a report is made of the other files, and has their times
    return path.stem if path.stem == "report" else data


def timeless(value: Any) -> Any:
    """A JSON value without its times."""
    if isinstance(value, list):
        return [timeless(item) for item in value]
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in TIMES}
    return value
