"""Evaluates an attack at several radii at the cost of the smallest one alone."""

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
    out: Path,
    **options: Any,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows of an attack at each radius, the largest first, and reasons not to trust it.

    An image that withstands the attack in a ball withstands it in the smaller balls inside it, so
    that at each radius only images that fell at the next larger one are attacked. These images are
    most of the cost, as an attack stops at the first adversarial image. ``withstood_before`` counts
    the images of a row that were not attacked. For strong attacks: a weak one may find in a small
    ball what it misses in a large one.

    Args:
        out: folder for the evaluations, from which they resume.
        options: of `evaluate`; among them ``limit``.
    """
    first, *smaller = sorted(radii, key=lambda text: parse_fraction(text, "radii"), reverse=True)
    found = evaluate(classifier, images, attack, first, out=_folder(out, attack, first), **options)
    rows, reasons, places = [found.rows[1]], list(found.reasons), found.data["indices"]
    del options["limit"]
    for radius in smaller:
        fell = [p for p, flag in zip(places, rows[-1]["flags"], strict=True) if flag != STANDS]
        folder = _folder(out, attack, radius)
        found = evaluate(classifier, Subset(images, fell), attack, radius, out=folder, **options)
        rows.append(_completed(found.rows[1], rows[-1]["flags"]))
        reasons += found.reasons
    return rows, reasons


def _folder(out: Path, attack: str, radius: str) -> Path:
    return out / f"{attack}-{radius.replace('/', '-')}"


def _completed(row: Mapping[str, Any], before: str) -> dict[str, Any]:
    """Return the row of all images, given that of those without `STANDS` in ``before``."""
    own = iter(row["flags"])
    flags = "".join(STANDS if flag == STANDS else next(own) for flag in before)
    stood, n, standing = before.count(STANDS), len(flags), flags.count(STANDS)
    done = {"flags": flags, "n": n, "accuracy": standing / n, "interval": [*wilson(standing, n)]}
    if "parts" in row:
        done["parts"] = [{**part, "standing": part["standing"] + stood} for part in row["parts"]]
    return {**row, **done, "withstood_before": stood}
