"""Checks that the rows of different attacks are consistent."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from .verdict import Verdict

Row = Mapping[str, Any]
_LUCK = 0.02  # tolerated share of the images
_NUMBERED = re.compile(r"(.+)-(\d+)")


def check_rows(rows: Sequence[Row]) -> list[Verdict]:
    """Run the checks on one model's rows."""
    attacked = [row for row in rows if row["attack"] != "clean"]
    return [
        _ordered("rows: radius", _by_radius(attacked)),
        _ordered("rows: steps", _by_steps(attacked)),
        _ordered("rows: white-box", _by_sight(attacked)),
    ]


Pair = tuple[Row, Row, str]  # weaker attack, stronger attack, reason


def _ordered(check: str, pairs: Iterable[Pair]) -> Verdict:
    """Check that no stronger attack leaves a higher robust accuracy."""
    looked = 0
    for weak, strong, why in pairs:
        looked += 1
        if strong["accuracy"] > weak["accuracy"] + _LUCK:
            return Verdict.of(check, f"{_words(strong)} against {_words(weak)}: {why}")
    if not looked:
        return Verdict(check, "skipped", "there are no two rows to compare")
    return Verdict.of(check, "", pairs=looked)


def _words(row: Row) -> str:
    radius = f"{255 * row['eps']:g}/255"
    return f"{100 * row['accuracy']:.1f} % under {row['attack']} at {radius} ({row['path']})"


def _pairs(rows: Sequence[Row], same: Callable[[Row], Any]) -> Iterable[tuple[Row, Row]]:
    for a, b in combinations(rows, 2):
        if same(a) == same(b):
            yield a, b


def _by_radius(rows: Sequence[Row]) -> Iterable[Pair]:
    for a, b in _pairs(rows, lambda row: (row["attack"], row["path"])):
        small, large = sorted((a, b), key=lambda row: row["eps"])
        yield small, large, "a larger ball contains the smaller one"


def _by_steps(rows: Sequence[Row]) -> Iterable[Pair]:
    numbered = [(row, _NUMBERED.fullmatch(row["attack"])) for row in rows]
    known = [(row, found[1], int(found[2])) for row, found in numbered if found]
    for (a, kind, few), (b, other, many) in combinations(known, 2):
        if kind == other and a["eps"] == b["eps"] and a["path"] == b["path"]:
            weak, strong = (a, b) if few < many else (b, a)
            yield weak, strong, "more steps should not be weaker"


def _by_sight(rows: Sequence[Row]) -> Iterable[Pair]:
    """Pair the other attacks at each radius with the best white-box attack."""
    for radius in dict.fromkeys(row["eps"] for row in rows):
        here = [row for row in rows if row["eps"] == radius]
        white = [row for row in here if row["path"] == "adaptive"]
        if white:
            best = min(white, key=lambda row: row["accuracy"])
            for row in here:
                if row["path"] != "adaptive":
                    yield row, best, "an attack with less access is stronger: a gradient is masked"
