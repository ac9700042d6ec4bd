"""Cost and memory against the number of classes, read from a machine's growth.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastprompt._files import read_json

FILE = "growth.json"


@dataclass(frozen=True)
class Point:
    """What a step on so many classes costs."""

    classes: int
    seconds: float | None
    peak_bytes: float | None


Curves = Mapping[str, Sequence[Point]]


def curves(found: object) -> Curves:
    """By rung, cost against classes: the first such lists in a growth file, wherever they are.

    A list counts if its entries have ``classes``, of which there are several, and ``seconds``
    (a number, or a ``median``) or ``peak_bytes``.
    """
    return next(_search(found), {})


def _search(found: object) -> Iterator[Curves]:
    if isinstance(found, dict):
        own = {str(k): points for k, v in found.items() if (points := _points(v))}
        if own:
            yield own
        for value in found.values():
            yield from _search(value)
    elif isinstance(found, list):
        for value in found:
            yield from _search(value)


def _points(found: object) -> list[Point]:
    if not isinstance(found, list) or not all(isinstance(e, dict) for e in found):
        return []
    entries = [e for e in found if "classes" in e and {"seconds", "peak_bytes"} & set(e)]
    if len({e["classes"] for e in entries}) < 2:
        return []
    return [Point(e["classes"], _number(e.get("seconds")), e.get("peak_bytes")) for e in entries]


def _number(value: Any) -> float | None:
    return value.get("median") if isinstance(value, dict) else value


def committed(results: Path) -> dict[str, Curves]:
    """The curves of every machine under ``results`` that has some, by the folder's name."""
    found = {p.parent.name: curves(read_json(p)) for p in sorted(results.glob(f"*/{FILE}"))}
    return {machine: rungs for machine, rungs in found.items() if rungs}
