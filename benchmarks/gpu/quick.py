"""Runs the parts of a call one after another, each in a process that is stopped at its limit.

Started by `quick.sh`. Imports nothing but the standard library before the wheels are installed.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ..common import environment as variables
from ..common.notes import append
from .parts import FIRST, SECOND, Call, Part, arithmetic, chosen, everything
from .wheels import FOLDER, ROOT, WheelsMissingError, install, needed

NOTES, LOG, CACHES = "quick.jsonl", "quick.log", "caches.tar.gz"
VOLUME = 15 << 20  # bytes; transfers often limit a file's size
DRY_SECONDS = 600
VOLUMES = 4  # with notes and log, fewer than `MOST_FILES`


class CannotRunError(RuntimeError):
    """The call cannot be made; the message says what to do."""


def arguments(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu/quick.sh", description=__doc__)
    add = parser.add_argument
    add("--budget", type=int, help="seconds of this call; default 540, or 120 with --second")
    add("--second", type=int, metavar="LEFT", help="second call; seconds left on the machine")
    add("--only", nargs="+", metavar="PART", help="run these parts only")
    add("--out", type=Path, help="folder for results; default: in the temporary folder")
    add("--wheels", type=Path, default=FOLDER, help="folder of wheels; default: .wheels")
    add("--dry-run", action="store_true", help="on a CPU, on a model of two layers")
    return parser.parse_args(args)


def plan(second: int | None, budget: int | None, only: Sequence[str] | None) -> Call:
    """Return the call to make.

    Raises:
        CannotRunError: the time does not suffice, or a part is unknown.
    """
    call = FIRST if second is None else SECOND
    names = [part.name for part in call.parts]
    unknown = sorted(set(only or ()) - set(names))
    if unknown:
        raise CannotRunError(f"--only: unknown part {unknown[0]!r}; there are {', '.join(names)}")
    if second is not None and second < call.left:
        raise CannotRunError(
            f"--second {second}: a second call needs {call.left} s left on the machine; give the "
            "machine back"
        )
    call = chosen(call, only) if only else call
    if budget is not None and budget < call.seconds:
        raise CannotRunError(
            f"--budget {budget} is too short: these parts need {call.seconds} s; give "
            f"--budget {call.seconds}, or name the most valuable parts with --only {names[0]} "
            f"{names[1]}"
        )
    return call


def check_gpu() -> None:
    """Raise `CannotRunError` if torch sees no GPU."""
    asked = "import torch; print(torch.cuda.is_available())"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)
    if done.stdout.strip() != "True":
        why = done.stderr.strip().splitlines()[-1:] or ["torch.cuda.is_available() is False"]
        raise CannotRunError(
            f"no GPU: {why[0]}; run this on a machine with an H100 or H200, or give --dry-run"
        )


class Runner:
    """Starts parts, stops them in time, and notes how they ended.

    Args:
        out: folder of the notes and of the log.
        environment: of the processes.
        began: the second in which the call began, since the epoch.
    """

    def __init__(self, out: Path, environment: dict[str, str], began: float) -> None:
        self.out, self.environment, self.began = out, environment, began
        out.mkdir(parents=True, exist_ok=True)

    def run(self, parts: Sequence[Part], end: float) -> bool:
        """Run parts at the same time; return whether all succeeded before second ``end``."""
        with (self.out / LOG).open("a", encoding="utf-8") as log:
            running = [(part, self._start(part, log)) for part in parts]
            good = True
            for part, process in running:
                code = self._wait(process, self.began + end - time.time())
                self._tell(part, code)
                good &= code == 0
        return good

    def _start(self, part: Part, log: object) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "benchmarks.gpu.part", *part.tasks]
        return subprocess.Popen(  # in a session of its own: it is stopped with all it has started
            command,
            cwd=ROOT,
            env=self.environment,
            stdout=log,  # type: ignore[call-overload]
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _wait(self, process: "subprocess.Popen[bytes]", seconds: float) -> int | None:
        try:
            return process.wait(max(seconds, 0))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return None

    def _tell(self, part: Part, code: int | None) -> None:
        state = {0: "done", None: "stopped at its limit"}.get(code, "failed")
        seconds = round(time.time() - self.began, 1)
        append(self.out / NOTES, {"part": part.name, "name": "end", "value": [state, seconds]})
        print(f"{part.name:<12}{state}, at {seconds:.0f} s", flush=True)


def pack(cache: Path, out: Path, seconds: float) -> str:
    """Pack the caches of compiled code into volumes; return what was done.

    Nothing is written if there are too many volumes.
    """
    names = [name for name in ("triton", "inductor") if (cache / name).is_dir()]
    if not names:
        return "no caches: nothing was compiled"
    made = cache / CACHES
    try:
        command = ["tar", "-C", str(cache), "-czf", str(made), *names]
        subprocess.run(command, check=True, timeout=max(seconds, 1))
    except subprocess.SubprocessError as error:
        return f"caches left out: {error}"
    size = made.stat().st_size
    if size > VOLUME * VOLUMES:
        return f"caches left out: {size >> 20} MiB"
    with made.open("rb") as file:
        for index in range(-(-size // VOLUME)):
            (out / f"{CACHES}.{index}").write_bytes(file.read(VOLUME))
    return f"caches: {size / 2**20:.1f} MiB; unpack with: cat {CACHES}.* | tar xz"


def go(given: argparse.Namespace) -> int:
    """Check, print the plan, run the parts; return 1 if one failed."""
    call = plan(given.second, given.budget, given.only)
    began = float(os.environ.get("FASTPROMPT_GPU_BEGAN", time.time()))
    cache = Path(os.environ.get("FASTPROMPT_GPU_CACHE", f"{tempfile.gettempdir()}/fastprompt-gpu"))
    if not given.dry_run:
        check_gpu()
    site = cache / "site"
    if given.second is None or not site.exists():
        shutil.rmtree(site, ignore_errors=True)
        install(needed(given.wheels), site)
    print(arithmetic(call), flush=True)
    if given.dry_run and not (given.only or given.second):
        print(arithmetic(SECOND), flush=True)
        call = everything()
    out = (given.out or cache / "out").resolve()
    path = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, variables.NOTES: str(out / NOTES)}
    environment |= {variables.DRY_RUN: "1"} if given.dry_run else {}
    runner = Runner(out, environment, began)
    # a CPU is slower: only the whole dry run has a limit
    ends = dict.fromkeys(call.ends(), DRY_SECONDS) if given.dry_run else call.ends()
    good = True
    for index, part in enumerate(call.parts):
        if not part.beside:
            follow = call.parts[index + 1 : index + 2]
            together = [part, *(p for p in follow if p.beside)]
            good &= runner.run(together, ends[part.name])
    if call.after:
        print(pack(cache, out, began + call.seconds - time.time()), flush=True)
    print(f"{time.time() - began:.0f} s; results: {out / NOTES}")
    return 0 if good else 1


def main(args: Sequence[str] | None = None) -> int:
    """Run a call; what prevents it is one line on stderr, with exit code 2."""
    try:
        return go(arguments(args))
    except (CannotRunError, WheelsMissingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
