"""The workers of a Ray cluster, and how items are handed out to them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import Any

from .._utils.checks import shown
from .._utils.progress import Progress
from .._utils.versions import versions
from .items import Items, Lent
from .worker import Failure, Worker, numerics

TRIES = 4  # of an item whose worker is lost, and of starting a worker
WAIT = 600.0  # seconds without any worker
_TICK = 1.0
_LONGEST = 500  # characters of an error of Ray
_AHEAD = 4  # items per worker that may be done before the one that is yielded next


@dataclass
class _Member:
    """A worker: its actor, what it was called for last, and its answer to come."""

    actor: Any
    call: str
    ref: Any
    where: str = "a worker"
    lent: Lent | None = None


class RayTeam:
    """Workers of a Ray cluster, one actor each.

    A worker that is lost, with its process or its machine, is replaced as soon as the cluster has
    room for another, and its item is computed again by another worker: an item has one result.

    Args:
        ray: the package, connected.
        work: sent once to each worker.
        needs: resources of each worker: ``num_cpus``, ``num_gpus``.
        threads: threads of torch of each.
        workers: their number; None for as many as the cluster has resources for.
    """

    def __init__(
        self, ray: Any, work: Any, needs: Mapping[str, float], threads: int, workers: int | None
    ) -> None:
        self._ray, self._needs, self._threads = ray, dict(needs), threads
        self._work, self.size = work, workers or self._room()
        self._members: list[_Member] = []
        self._lost_starts, self._last_seen = 0, time.monotonic()
        self._kind = ray.remote(Worker).options(
            **needs, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD"
        )

    def close(self) -> None:
        """End the workers."""
        for member in self._members:
            self._end(member)
        self._members = []

    def each(self, items: Iterable[Any], bar: Progress | None = None) -> Iterator[Any]:
        """Yield the results of the items, in their order."""
        coming = iter(items)
        first = list(islice(coming, 1))
        if not first:
            return  # without a worker
        queue = Items(chain(first, coming), _AHEAD * self.size)
        self._last_seen = time.monotonic()
        try:
            while True:
                yield from queue.leaving()
                self._recruit()
                for member in self._members:
                    if member.call == "ready" and (lent := queue.take()) is not None:
                        self._lend(member, lent)
                if queue.over:
                    return
                if bar is not None:
                    bar.workers(sum(m.call in ("ready", "do") for m in self._members))
                for member in self._answers():
                    self._settle(member, queue)
        finally:
            # what is computed for a caller that has stopped is not for the next one
            for member in [m for m in self._members if m.lent is not None]:
                self._end(member)
                self._members.remove(member)

    def _lend(self, member: _Member, lent: Lent) -> None:
        lent.tries += 1
        member.lent, member.call = lent, "do"
        member.ref = member.actor.do.remote(lent.item)

    def _answers(self) -> list[_Member]:
        """Wait for answers for a moment, and return the workers that have answered."""
        by_ref = {m.ref: m for m in self._members if m.ref is not None}
        if not by_ref:
            return []
        ready, _ = self._ray.wait(list(by_ref), num_returns=1, timeout=_TICK)
        if ready or any(m.call == "do" for m in self._members):
            self._last_seen = time.monotonic()
        elif time.monotonic() - self._last_seen > WAIT:
            raise RuntimeError(
                f"ray: no worker has started in {WAIT:.0f} s; each needs {self._wish()}, of which "
                "the cluster has none left: end what uses it, or add machines"
            )
        return [by_ref[ref] for ref in ready]

    # ---- workers -----------------------------------------------------------------------------

    def _room(self) -> int:
        """Return how many workers the cluster has resources for."""
        names = {"num_cpus": "CPU", "num_gpus": "GPU"}
        have = self._ray.cluster_resources()
        room = min(int(have.get(names[key], 0) // need) for key, need in self._needs.items())
        if not room:
            found = ", ".join(f"{have.get(name, 0):g} {name}" for name in ("CPU", "GPU"))
            raise RuntimeError(
                f"ray: the cluster has no machine for a worker, which needs {self._wish()}; it has "
                f"{found} in all"
            )
        return room

    def _wish(self) -> str:
        return " and ".join(f"{n:g} {k.removeprefix('num_')[:-1]}" for k, n in self._needs.items())

    @cached_property
    def _wanted(self) -> dict[str, str]:
        return self._work.facts()

    @cached_property
    def _sent(self) -> Any:
        try:
            return self._ray.put(self._work)
        except Exception as error:
            raise RuntimeError(f"ray: the work cannot be sent: {_line(error)}") from error

    def _recruit(self) -> None:
        while len(self._members) < self.size:
            actor = self._kind.remote()
            self._members.append(_Member(actor, "hello", actor.hello.remote()))

    def _settle(self, member: _Member, queue: Items) -> None:
        """Take a worker's answer: a result, or that it has started, or failed, or is lost."""
        errors = self._ray.exceptions
        try:
            answer = self._ray.get(member.ref)
        except errors.RayTaskError as error:  # where our own code could not catch it
            raise self._failed(member, _line(error.cause or error)) from None
        except errors.RayError as error:
            self._replace(member, queue, error)
            return
        if isinstance(answer, Failure):
            member.where = answer.where
            raise self._failed(member, answer.error, answer.traceback)
        member.ref = None
        if member.call == "hello":
            member.where, found = answer
            self._check(member, versions(), found)
            member.call = "begin"
            member.ref = member.actor.begin.remote(self._sent, numerics(self._threads))
        elif member.call == "begin":
            self._check(member, self._wanted, answer)
            member.call, self._lost_starts = "ready", 0
        else:
            assert member.lent is not None
            queue.finish(member.lent, answer)
            member.call, member.lent = "ready", None

    def _check(self, member: _Member, own: Mapping[str, str], other: Mapping[str, str]) -> None:
        """Raise ValueError unless a worker has the same facts."""
        for name in own:
            if own[name] != other.get(name):
                raise ValueError(
                    f"ray: {name} must be the same on all machines, got {shown(own[name])} here "
                    f"and {shown(other.get(name))} on {member.where}: use machines with the same "
                    "packages, files and processors"
                )

    def _failed(self, member: _Member, why: str, traceback: str = "") -> RuntimeError:
        doing = "could not start"
        if member.lent is not None:
            doing = f"failed at {self._work.title(member.lent.item)}"
        error = RuntimeError(f"ray: {member.where} {doing}: {why}")
        if traceback:
            error.add_note(f"Traceback of the worker:\n{traceback.rstrip()}")
        return error

    def _replace(self, member: _Member, queue: Items, error: Exception) -> None:
        """Take back the item of a worker that is lost; raise if it is lost too often."""
        self._end(member)
        self._members.remove(member)
        why, lent = _line(error), member.lent
        if lent is None:
            self._lost_starts += 1
            if self._lost_starts >= TRIES:
                raise RuntimeError(f"ray: {TRIES} workers ended while they started: {why}")
            return
        if lent.tries >= TRIES:
            title = self._work.title(lent.item)
            raise RuntimeError(f"ray: {title} ended {TRIES} workers; of the last one: {why}")
        queue.come_back(lent)

    def _end(self, member: _Member) -> None:
        with contextlib.suppress(Exception):
            self._ray.kill(member.actor)


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST]
