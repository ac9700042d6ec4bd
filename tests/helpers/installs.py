"""Processes that see only what an install of fastprompt with some extras would have brought."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
_HIDE = """
import json, sys
from importlib.machinery import PathFinder
class Visible(PathFinder):
    hidden = {*json.loads(sys.argv[1])}
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in cls.hidden:
            return PathFinder.find_spec(name, path, target)
sys.meta_path = [Visible if finder is PathFinder else finder for finder in sys.meta_path]
"""


def closure(requirements: Sequence[str]) -> set[str]:
    """Names of all distributions that these requirements bring on this machine.

    Raises:
        PackageNotFoundError: one of them is not installed.
    """
    found: set[tuple[str, str]] = set()
    left = [(r, "") for r in requirements]
    while left:
        text, extra = left.pop()
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for own in {"", *requirement.extras}:
            if (name, own) not in found:
                found.add((name, own))
                left += [(r, own) for r in requires(name) or ()]
    return {name for name, _ in found}


@cache
def _modules() -> dict[str, set[str]]:
    """The distributions of each importable name."""
    return {
        module: {canonicalize_name(name) for name in names}
        for module, names in packages_distributions().items()
    }


def hidden(*extras: str) -> list[str]:
    """The installed modules that an install with these extras would not have brought."""
    wanted = [r for extra in extras for r in PROJECT["optional-dependencies"][extra]]
    try:
        brought = closure([*PROJECT["dependencies"], *wanted]) | {"fastprompt"}
    except PackageNotFoundError as error:
        pytest.skip(f"pip install -e '.[{','.join(extras)}]': {error}")
    return sorted(module for module, names in _modules().items() if not names & brought)


def run(code: str, *extras: str, cwd: Path) -> str:
    """What the code prints in a new process that cannot import the others."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", _HIDE + code, json.dumps(hidden(*extras))],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
