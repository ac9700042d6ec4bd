"""Cost and memory against the number of classes, read from a machine's growth.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastprompt._utils.files import read_json

FILE, KEY = "growth.json", "cost_against_classes"


@dataclass(frozen=True)
class Point:
    """What a step on so many classes costs; None is not measured."""

    classes: int
    seconds: float | None
    peak_bytes: float | None


Curves = Mapping[str, Sequence[Point]]


def curves(found: Mapping[str, Any]) -> Curves:
    """By rung, the points of a growth file; none where it has no sweep over classes."""
    return {
        rung: [Point(p["classes"], p.get("seconds"), p.get("peak_bytes")) for p in points]
        for rung, points in found.get(KEY, {}).items()
    }


def committed(results: Path) -> dict[str, Curves]:
    """The curves of every machine under ``results`` that has some, by the folder's name."""
    found = {p.parent.name: curves(read_json(p)) for p in sorted(results.glob(f"*/{FILE}"))}
    return {machine: rungs for machine, rungs in found.items() if rungs}
