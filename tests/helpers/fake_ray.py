"""As much of Ray as a team uses, in this process, where it is neither installed nor started."""

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from fastprompt.runners.worker import Worker


class RayError(Exception):
    """A worker is lost."""


class RayTaskError(RayError):
    """An actor's method has raised."""

    cause = None


@dataclass(frozen=True, eq=False)
class _Answer:
    name: str
    compute: Callable[[], Any]


class FakeRay:
    """Actors that compute when their answer is asked for.

    Args:
        workers: processors of the cluster.
        theirs: the work that the workers find in place of what is sent: their files differ.
        lost: numbers of the calls of `Worker.do`, from 0, at which the worker is lost.

    Attributes:
        put_: how often the work was put on the cluster.
        calls: names of the actors' calls, in the order in which they were asked for.
        actors: number of actors started.
        alive: actors that have not been ended.
    """

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, workers: int = 2, theirs: Any = None, lost: tuple[int, ...] = ()) -> None:
        self.workers, self.theirs, self.lost = workers, theirs, lost
        self.put_ = self.actors = 0
        self.calls: list[str] = []
        self.alive: list[Any] = []
        self.needs: dict[str, Any] = {}

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self.workers)}

    def put(self, work: Any) -> Any:
        self.put_ += 1
        # by its __getstate__, as it is sent; the copy shares the models
        return copy.copy(work) if self.theirs is None else self.theirs

    def remote(self, kind: type) -> Any:
        assert kind is Worker
        return SimpleNamespace(options=self._options)

    def _options(self, **needs: Any) -> Any:
        self.needs = needs
        return SimpleNamespace(remote=self._start)

    def _start(self) -> Any:
        self.actors += 1
        actor, worker = SimpleNamespace(), Worker()
        for name in ("hello", "begin", "do"):
            setattr(actor, name, SimpleNamespace(remote=self._method(getattr(worker, name))))
        self.alive.append(actor)
        return actor

    def _method(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def remote(*arguments: Any) -> Any:
            number = self.calls.count("do")
            self.calls.append(method.__name__)
            lost = method.__name__ == "do" and number in self.lost
            compute = _die if lost else lambda: method(*arguments)
            return _Answer(method.__name__, compute)

        return remote

    def wait(
        self, answers: list[Any], num_returns: int, timeout: float
    ) -> tuple[list[Any], list[Any]]:
        # all start; then the last item first, so that results come out of order
        first = next((each for each in answers if each.name != "do"), answers[-1])
        return [first], [each for each in answers if each is not first]

    def get(self, answer: Any) -> Any:
        return answer.compute()

    def kill(self, actor: Any) -> None:
        self.alive.remove(actor)


def _die() -> None:
    raise RayError("The actor died")


def installed(patch: pytest.MonkeyPatch, **options: Any) -> FakeRay:
    """Let ``import ray`` find a cluster in this process."""
    ray = FakeRay(**options)
    patch.setitem(sys.modules, "ray", ray)
    return ray
