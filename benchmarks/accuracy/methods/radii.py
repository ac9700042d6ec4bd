"""Evaluates an attack at several radii, in little more time than at the smallest one alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Subset

from fastprompt import evaluate
from fastprompt._utils.checks import parse_fraction
from fastprompt.data.dataset import ImageDataset
from fastprompt.evaluation.record import STANDS
from fastprompt.evaluation.scoring import wilson
from fastprompt.model.classifier import CLIPClassifier


def from_the_largest(
    classifier: CLIPClassifier,
    images: ImageDataset,
    attack: str,
    radii: Sequence[str],
    limit: int,
    out: Path,
    **options: Any,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows of an attack at each radius, the largest first, and reasons not to trust it.

    An image that withstands the attack at a radius counts as withstanding it at smaller ones, whose
    balls are inside: only images that fell are attacked again. The others are most of the cost, as
    an attack stops at the first adversarial image. For strong attacks: a weak one may find in a
    small ball what it misses in a large one. ``withstood_before`` counts a row's images that were
    not attacked; costs are those of the others. The checks run at the largest radius.

    Args:
        limit, options: of `evaluate`.
        out: folder for the evaluations, from which they resume.
    """
    first, *smaller = sorted(radii, key=lambda text: parse_fraction(text, "radii"), reverse=True)
    options = {**options, "resume": True}
    whole = {"limit": limit, "out": _folder(out, attack, first)}
    found = evaluate(classifier, images, attack, first, **whole, **options)
    rows, reasons, places = [found.rows[1]], list(found.reasons), found.data["indices"]
    for radius in smaller:
        fell = [p for p, flag in zip(places, rows[-1]["flags"], strict=True) if flag != STANDS]
        again = {**options, "out": _folder(out, attack, radius), "sanity": "off"}
        found = evaluate(classifier, Subset(images, fell), attack, radius, **again)
        rows.append(_completed(found.rows[1], rows[-1]["flags"]))
        reasons += found.reasons
    return rows, reasons


def _folder(out: Path, attack: str, radius: str) -> Path:
    return out / f"{attack}-{radius.replace('/', '-')}"


def _completed(row: Mapping[str, Any], before: str) -> dict[str, Any]:
    """Return the row of all images, given that of those without `STANDS` in ``before``."""
    flags = _filled(row["flags"], before)
    standing, n = flags.count(STANDS), len(flags)
    share = {"accuracy": standing / n, "correct": standing, "interval": [*wilson(standing, n)]}
    done = {**row, "flags": flags, "n": n, **share, "withstood_before": before.count(STANDS)}
    if "parts" in row:
        done["parts"] = [_part(part, before) for part in row["parts"]]
    return done


def _part(part: Mapping[str, Any], before: str) -> dict[str, Any]:
    flags = _filled(part["flags"], before)
    return {**part, "flags": flags, "standing": part["standing"] + before.count(STANDS)}


def _filled(flags: str, before: str) -> str:
    """Put the flags of the attacked images in the places without `STANDS`."""
    if len(flags) != len(before) - before.count(STANDS):
        raise ValueError(f"{len(flags)} flags for {before!r}")
    own = iter(flags)
    return "".join(STANDS if flag == STANDS else next(own) for flag in before)
