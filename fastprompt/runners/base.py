"""What runs independent items of work, and the one that runs them in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeVar

import torch

from .._utils.progress import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")
ItemIn = TypeVar("ItemIn", contravariant=True)
ResultOut = TypeVar("ResultOut", covariant=True)


class Work(Protocol[ItemIn, ResultOut]):
    """What is done with each item; it is sent to each worker once, with the models it needs.

    The result of an item depends on the item alone, so that it may be computed anywhere, and again.
    """

    def __call__(self, item: ItemIn, /) -> ResultOut:
        """Compute the result of an item."""
        ...

    def title(self, item: ItemIn, /) -> str:
        """Return the item in words, for messages."""
        ...

    def facts(self) -> dict[str, str]:
        """Return what must be the same on all workers, by name; mostly hashes.

        Raises an error if this machine lacks what the work needs, such as the data.
        """
        ...


class Team(Protocol[ItemIn, ResultOut]):
    """Workers that have the work."""

    def each(self, items: Iterable[ItemIn], bar: Progress | None = None) -> Iterator[ResultOut]:
        """Yield the results of the items, in their order.

        Args:
            items: taken a few ahead of the result that is yielded next.
            bar: shows the number of workers.
        """
        ...


class Runner(Protocol):
    """Where items of work are computed."""

    def team(
        self, work: Work[Item, Result], device: torch.device
    ) -> AbstractContextManager[Team[Item, Result]]:
        """Send the work, whose tensors are on ``device``, to workers; they end with the context."""
        ...


class Here:
    """Computes each item in this process when its result is asked for."""

    @contextmanager
    def team(self, work: Work[Item, Result], device: torch.device) -> Iterator[Team[Item, Result]]:
        """Return the work itself as the only worker."""
        yield _Alone(work)


class _Alone:
    def __init__(self, work: Work[Any, Any]) -> None:
        self._work = work

    def each(self, items: Iterable[Any], bar: Progress | None = None) -> Iterator[Any]:
        return map(self._work, items)


HERE = Here()
