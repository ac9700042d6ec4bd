"""The runner that an argument stands for."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from .._utils.checks import shown
from .base import HERE, Runner
from .on_ray import Ray, import_ray


def runner_of(runner: Runner | str | None, name: str = "runner") -> Runner:
    """Return a runner: None stands for this process, ``"ray"`` for a Ray cluster on this machine.

    Raises:
        ValueError, TypeError: it is something else.
        ImportError: Ray is not installed.
    """
    if runner is None:
        return HERE
    if isinstance(runner, str) and runner == "ray":
        runner = Ray()
    if isinstance(runner, str | type) or not callable(getattr(runner, "team", None)):
        error = ValueError if isinstance(runner, str) else TypeError
        raise error(f"{name} must be 'ray' or fastprompt.runners.Ray(...), got {shown(runner)}")
    if isinstance(runner, Ray):
        import_ray()
    return runner


def connected(runner: Runner) -> AbstractContextManager[Any]:
    """Keep a Ray cluster for several teams; in this process there is nothing to keep."""
    return runner.connected() if isinstance(runner, Ray) else nullcontext()
