"""The tests marked ``gpu``, run in other processes."""

import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from ..common.dry_run import DRY_RUN
from ..common.paths import ROOT

LAUNCH = "tests/kernels/launch"
# what a timing relies on: nothing waits for the device, and attacks are captured
STEPS = ("tests/methods/test_methods_gpu.py", "tests/tuning/test_cuda_graph.py")
LADDER = "tests/benchmarks/ladder"  # runs benchmarks for minutes
WORKERS = 0 if DRY_RUN else 6  # 0: in pytest's own process


def marked(skipped: Sequence[str] = ()) -> list[str]:
    """Return the files with tests marked ``gpu``, except kernels' and those under ``skipped``.

    Collecting all other files takes as long as these tests.
    """
    found = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith((LAUNCH, *skipped)) and "pytest.mark.gpu" in path.read_text("utf-8"):
            found.append(name)
    return found


def kernel_tests(seconds: int = 450) -> dict[str, Any]:
    """Compare kernels and plain code, and run the steps' tests; most of it is compilation."""
    return run_tests([LAUNCH, *STEPS], seconds)


def gpu_tests(seconds: int = 450, ladder: bool = True) -> dict[str, Any]:
    """Run every other test marked ``gpu``.

    Args:
        ladder: with the tests that run benchmarks, which take minutes.
    """
    return run_tests(marked(STEPS if ladder else (*STEPS, LADDER)), seconds)


def run_tests(chosen: Sequence[str], seconds: int) -> dict[str, Any]:
    """Run tests marked ``gpu`` in six processes.

    Raises:
        RuntimeError: a test failed, or they took longer; with what was printed until then.
    """
    seconds = 400 if DRY_RUN else seconds  # a CPU is slow
    command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "--tb=short", "-rfE"]
    command += ["-p", "no:cacheprovider", "-n", str(WORKERS), "--dist", "worksteal", *chosen]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
        late = ""
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            late = f"stopped after {seconds} s\n"
            stop(process)
        out.seek(0)
        printed = out.read()
    lines = printed.strip().splitlines()
    counts = {word: sum(f" {word} " in line for line in lines) for word in ("PASSED", "FAILED")}
    if late or process.returncode:
        raise RuntimeError(f"{late}{counts}\n{printed[-8000:]}")
    return {"summary": lines[-1], **counts}


def stop(process: "subprocess.Popen[Any]", seconds: float = 8.0) -> None:
    """Interrupt pytest, which then prints the failures until now; end it if it does not end."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
