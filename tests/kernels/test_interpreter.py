"""The kernels on the CPU, through Triton's interpreter: each file of launch/ in its own process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parent / "launch"
ROOT = LAUNCH.parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(p.stem for p in LAUNCH.glob("test_*.py")))
def test_kernels_under_the_interpreter(name):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--confcutdir={LAUNCH}",  # the fixtures above import open_clip
        f"{LAUNCH}/{name}.py",
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert not done.returncode, done.stdout[-4000:] + done.stderr[-1000:]
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout
