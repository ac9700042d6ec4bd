"""Reads cost and memory against the number of classes from growth.json files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastprompt._utils.files import read_json

FILE, KEY = "growth.json", "cost_against_classes"


@dataclass(frozen=True)
class Point:
    """Cost of a step with this number of classes; None if not measured."""

    classes: int
    seconds: float | None
    peak_bytes: float | None


Curves = Mapping[str, Sequence[Point]]


def curves(found: Mapping[str, Any]) -> Curves:
    """Return the points of a growth file by implementation; empty without a sweep over classes."""
    return {
        rung: [Point(p["classes"], p.get("seconds"), p.get("peak_bytes")) for p in points]
        for rung, points in found.get(KEY, {}).items()
    }


def committed(results: Path) -> dict[str, Curves]:
    """Return the curves of every machine under ``results`` that has any, by folder name."""
    found = {p.parent.name: curves(read_json(p)) for p in sorted(results.glob(f"*/{FILE}"))}
    return {machine: rungs for machine, rungs in found.items() if rungs}
