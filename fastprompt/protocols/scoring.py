"""The attacks under which a cell is judged: today's strict scoring, or that of a paper."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .._utils.checks import Fraction, parse_fraction, shown
from .._utils.names import unknown
from ..evaluation.plan import split_names, split_radii

STRICT, PUBLISHED = "strict", "published"


@dataclass(frozen=True)
class Paper:
    """The test attack of a paper's code: its name for `evaluate`, and its radius if it is fixed."""

    attack: str
    eps: str | None = None


_COMMON = Paper("pgd-100")  # alpha is eps/4
PAPERS = {
    "nap": _COMMON,
    "fap": Paper("pgd-100:1/255", "1/255"),
    "tapt": Paper("pgd-100:1/255", "1/255"),
    "advpt": Paper("feature-pgd-40", "16/255"),
}


def check_scoring(scoring: Any) -> str:
    """Return ``scoring`` if it is ``"strict"``, ``"published"`` or ``"published:PAPER"``."""
    if not isinstance(scoring, str):
        raise TypeError(f"scoring must be a string, got {shown(scoring)}")
    kind, colon, paper = scoring.partition(":")
    if kind not in (STRICT, PUBLISHED) or (colon and kind == STRICT):
        raise unknown("scoring", scoring, [STRICT, PUBLISHED, *(f"published:{p}" for p in PAPERS)])
    if colon and paper not in PAPERS:
        raise unknown("paper", paper, PAPERS)
    return scoring


def radii_of(eps: Fraction | Sequence[Fraction], name: str) -> list[str]:
    """Return radii in one spelling, such as ``4/255``."""
    return [
        f"{255 * parse_fraction(e, name, zero=True):.12g}/255"
        for e in dict.fromkeys(split_radii(eps))
    ]


def judging(method: str, facts: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return the attacks and radii under which a method is judged.

    The radii are those that were given, else the paper's, else the radius of tuning that was given
    for all methods, else 4/255.
    """
    paper = Paper("pgd-20")
    if facts["scoring"] != STRICT:
        own = facts["scoring"].partition(":")[2] or method
        paper = PAPERS.get(own, _COMMON)
    attacks = split_names(facts["attacks"] or ["clean", paper.attack])
    return attacks, facts["eval_eps"] or [paper.eps or facts["eps"] or "4/255"]
