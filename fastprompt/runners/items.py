"""Items that are handed out to workers, and their results, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass
class Lent:
    """An item, its number in the order, and to how many workers it was handed out."""

    number: int
    item: Any
    tries: int = 0


class Items:
    """Items to hand out; each has one result, and the results leave in the items' order.

    Args:
        items: taken from the iterable when they are handed out.
        ahead: number of items that may be taken from the one whose result leaves next.
    """

    def __init__(self, items: Iterable[Any], ahead: int) -> None:
        self._coming, self._ahead = iter(items), ahead
        self._back: list[Lent] = []
        self._done: dict[int, Any] = {}
        self._taken = self._left = 0
        self._more = True

    @property
    def over(self) -> bool:
        """Whether all results have left."""
        return not self._more and self._left == self._taken

    def take(self) -> Lent | None:
        """Return an item to hand out: one that came back, else the next; None if none is due."""
        if self._back:
            lent = min(self._back, key=lambda each: each.number)
            self._back.remove(lent)
            return lent
        if not self._more or self._taken - self._left >= self._ahead:
            return None
        for item in self._coming:
            self._taken += 1
            return Lent(self._taken - 1, item)
        self._more = False
        return None

    def come_back(self, lent: Lent) -> None:
        """Take back an item whose worker was lost."""
        self._back.append(lent)

    def finish(self, lent: Lent, result: Any) -> None:
        """Take an item's result."""
        self._done[lent.number] = result

    def leaving(self) -> Iterator[Any]:
        """Yield the results that are next in the order."""
        while self._left in self._done:
            self._left += 1
            yield self._done.pop(self._left - 1)
