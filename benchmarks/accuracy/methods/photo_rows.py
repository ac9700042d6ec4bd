"""Reads rows of the comparison on photographs, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastprompt._utils.checks import parse_fraction
from fastprompt.evaluation.record import FELL, STANDS

from .cells import cell_of
from .photo_cells import APGD, AUTOATTACK
from .results_page import Row, shares
from .run import ATTACK

BOTH = "apgd"  # both attacks of `APGD`; of AutoAttack, its first two parts


def select(cells: Sequence[Row], **facts: Any) -> list[Row]:
    """Return the cells that have these values."""
    return [cell for cell in cells if all(cell[k] == v for k, v in facts.items())]


def standing(cells: Sequence[Row], eps: str | None, attack: str = ATTACK) -> list[float]:
    """Return for each image how often it is classified correctly in these cells, in percent.

    Args:
        eps: radius, or None for the clean images.
        attack: of the evaluation, or `BOTH`.
    """
    return shares([_flags(cell, eps, attack) for cell in cells])


def _flags(cell: Row, eps: str | None, attack: str) -> str:
    """Return a cell's flags: one character for each image, see `fastprompt.evaluation.record`."""
    if eps is None:
        return str(_row(cell, 0.0, "clean")["flags"])
    radius = parse_fraction(eps, "eps")
    if attack != BOTH:
        return str(_row(cell, radius, attack)["flags"])
    if AUTOATTACK[0] in cell["attacks"]:
        parts = {part["attack"]: part for part in _row(cell, radius, AUTOATTACK[0])["parts"]}
        return str(parts[APGD[-1]]["flags"])
    both = zip(*(_row(cell, radius, attack)["flags"] for attack in APGD), strict=True)
    return "".join(STANDS if set(pair) == {STANDS} else FELL for pair in both)


def _row(cell: Row, eps: float, attack: str) -> Row:
    for row in cell["rows"]:
        if row["attack"] == attack and abs(row["eps"] - eps) < 1e-9:
            return dict(row)
    raise KeyError(f"{cell_of(cell).name} has no row of {attack} at {255 * eps:g}/255")
