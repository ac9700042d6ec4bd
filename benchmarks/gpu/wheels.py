"""Packages for a machine without a network: which are missing there, and their installation.

python -m benchmarks.gpu.wheels FOLDER    # prints the size, fails above 64 MiB with the checkout

`make gpu-wheels` fills the folder.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

LIST = Path(__file__).with_name("wheels.txt")
ROOT = LIST.parents[2]
FOLDER = ROOT / ".wheels"
MOST = 64 << 20  # bytes, with the checkout
# which no GPU task uses; a checkout may come without them
UNUSED = ("fastprompt/assets/tiny-photos", "fastprompt/assets/photos.zip")
PIP = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]


class WheelsMissingError(RuntimeError):
    """A package is neither installed nor among the wheels."""


def needed(folder: Path = FOLDER, listed: Path = LIST) -> list[str]:
    """Return the wheels of the packages that are not installed, or in too old a version.

    Raises:
        WheelsMissingError: there is no wheel for one of them.
    """
    command = [*PIP, "--dry-run", "--find-links", str(folder), "--report", "-", "-r", str(listed)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        name = re.search(r"No matching distribution found for ([^\s;(]+)", done.stderr)
        if name is None:
            raise WheelsMissingError(f"pip fails: {' '.join(done.stderr.split())[-300:]}")
        raise WheelsMissingError(
            f"{name[1]} is not installed, and {folder} has no wheel of it for this Python: run "
            "`make gpu-wheels` where there is a network, and copy the folder with the checkout"
        )
    found = json.loads(done.stdout)["install"]
    return [item["download_info"]["url"].removeprefix("file://") for item in found]


def install(wheels: list[str], target: Path) -> None:
    """Unpack wheels into a folder for ``PYTHONPATH``; the machine's packages stay as they are."""
    if wheels:
        subprocess.run([*PIP, "--no-compile", "--target", str(target), *wheels], check=True)


def total(folder: Path = FOLDER) -> tuple[int, int]:
    """Return the bytes of the wheels, and of the files of the checkout that tasks may use."""
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = (name for name in done.stdout.split("\0") if name)
    files = [ROOT / name for name in names if not name.startswith(UNUSED)]
    checkout = sum(p.lstat().st_size for p in files if p.is_symlink() or p.is_file())
    return sum(p.stat().st_size for p in folder.glob("*.whl")), checkout


def main(folder: Path = FOLDER) -> int:
    """Print the sizes; return 1 if they are too large to be carried."""
    wheels, checkout = total(folder)
    both = wheels + checkout
    mib = [f"{size / 2**20:.1f}" for size in (wheels, checkout, both, MOST)]
    print("wheels {} MiB, checkout {} MiB: {} of {} MiB".format(*mib))
    return int(both > MOST)


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
