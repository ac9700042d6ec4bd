"""Tables of README.md, docs/results_photos.md and docs/guides/choosing.md, from the results."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastprompt._utils.files import read_json

from ...common.report import NOT_YET, markdown
from . import run
from .cells import SEEDS, cell_of
from .photo_cells import (
    APGD,
    AUTOATTACK,
    CORRUPTED,
    EPS,
    METHODS,
    MODELS,
    PUBLISHED,
    SHOTS,
    photo_cells,
)
from .photo_rows import BOTH, select, standing
from .results_page import (
    Row,
    accuracies,
    gain,
    harmonic,
    name_of,
    of_images,
    radius_of,
    spread,
)

# method, part and changed settings of the cells, whether the preset has the part, words
CLAIMS: Sequence[tuple[str, str, str, bool, str]] = (
    (
        "ampt",
        "mixture",
        "n_prompts=1, n_ctx=4",
        True,
        "AMPT: eight prompts of 4 tokens, not one of 4",
    ),
    (
        "ampt",
        "mixture",
        "n_prompts=1, n_ctx=32",
        True,
        "AMPT: eight prompts of 4 tokens, not one of 32",
    ),
    (
        "nap",
        "refiners",
        "refiners=False, text_refiners=False",
        True,
        "NAP: all token refiners",
    ),
    ("nap", "refiners", "text_refiners=False", True, "NAP: text token refiners"),
    ("nap", "layers", "consistency=cosine", False, "NAP: consistency of the layers"),
    ("capt", "balance", "lam=0.0", True, "CAPT: the consistency term"),
)
# blocks of README.md and docs/guides/choosing.md; all others are of docs/results_photos.md
SHORT, CHOICE = "photos-short", "photos-choice"
# two-sided 95 % quantile of Student's t distribution for three seeds
QUANTILE = 4.303


def main_table(cells: Sequence[Row]) -> str:
    """Format accuracies with ranges over the seeds, and costs, of both models."""
    rows = []
    for model in MODELS:
        for method in METHODS:
            own = select(cells, part="main", model=model, method=method)
            if not own:
                continue
            strong = select(cells, part="strong", model=model, method=method)
            found = [
                spread(values) or "-"
                for eps in EPS
                for values in (
                    accuracies(own, eps),
                    [statistics.mean(standing([cell], eps, BOTH)) for cell in strong],
                    accuracies(strong, eps, AUTOATTACK[0]),
                )
            ]
            trained = f"{own[0]['parameters']:,}" if "parameters" in own[0] else ""
            took = _minutes(own)
            seeds = "" if method == METHODS[0] else str(len(own))
            clean = spread(accuracies(own, None))
            rows.append(
                [model, name_of(method), radius_of(own[0]), clean, *found, took, trained, seeds]
            )
    attacks = [f"{name}, {eps}" for eps in EPS for name in ("PGD-100", "APGD", "AutoAttack")]
    head = ["", "method", "tuned at", "clean", *attacks, "minutes", "trained parameters", "seeds"]
    return markdown(head, rows) if rows else ""


def _minutes(cells: Sequence[Row]) -> str:
    """Format the mean time of the tunings on each processor."""
    times: dict[str, list[float]] = {}
    for cell in cells:
        if "tuning_seconds" in cell:
            name = cell["machine"]["processor"].replace("(R)", "").removesuffix(" Processor")
            times.setdefault(name, []).append(cell["tuning_seconds"] / 60)
    return ", ".join(f"{statistics.mean(own):.1f} ({name})" for name, own in times.items())


def short_table(cells: Sequence[Row]) -> str:
    """Format the means over the seeds: both models side by side."""
    rows = []
    for method in METHODS:
        row = [name_of(method)]
        for model in MODELS:
            own = select(cells, part="main", model=model, method=method)
            means = (accuracies(own, eps) for eps in (None, *EPS))
            row += [f"{statistics.mean(values):.1f}" if values else "-" for values in means]
        rows.append(row)
    head = ["method", *(f"{model}: {k}" for model in MODELS for k in ("clean", *EPS))]
    return markdown(head, rows) if cells else ""


def corrupted_table(cells: Sequence[Row]) -> str:
    """Format the mean clean accuracy over the three strengths of each corruption."""
    kinds = list(dict.fromkeys(name.rsplit("-", 1)[0] for name in CORRUPTED))
    rows = []
    for model in MODELS:
        for method in METHODS:
            own = select(cells, part="corrupted", model=model, method=method)
            if len(own) < len(CORRUPTED):
                continue
            of = [
                accuracies([c for c in own if c["test"].startswith(kind)], None) for kind in kinds
            ]
            means = [f"{statistics.mean(values):.1f}" for values in of]
            every = statistics.mean(value for values in of for value in values)
            rows.append([model, name_of(method), *means, f"{every:.1f}"])
    head = ["", "method", *(kind.removeprefix("photos-") for kind in kinds), "mean"]
    return markdown(head, rows) if rows else ""


def new_table(cells: Sequence[Row]) -> str:
    """Format the accuracies on base and new classes, with their harmonic means."""
    rows = []
    for model in MODELS:
        for method in METHODS:
            own = select(cells, part="new", model=model, method=method)
            row = []
            for eps in (None, EPS[0]):
                base, new = (accuracies(select(own, test_classes=h), eps) for h in ("base", "new"))
                row += [spread(base), spread(new), harmonic(base, new)]
            if all(row):
                rows.append([model, name_of(method), *row])
    head = ["", "method"]
    head += [f"{half} {k}" for k in ("clean", EPS[0]) for half in ("base", "new", "mean")]
    return markdown(head, rows) if rows else ""


def choice_table(cells: Sequence[Row]) -> str:
    """Format each method's differences from the zero-shot classifier, in points.

    A difference is shown if all its images are evaluated, for at least one seed.
    """
    strong = {"part": "strong", "attacks": list(AUTOATTACK)}
    columns: Sequence[tuple[str, dict[str, Any], str | None, str]] = (
        ("clean", {"part": "main"}, None, ""),
        (f"PGD-100, {EPS[0]}", {"part": "main"}, EPS[0], ""),
        (f"APGD, {EPS[0]}", {"part": "strong", "seed": 0}, EPS[0], BOTH),
        (f"AutoAttack, {EPS[0]}", strong, EPS[0], AUTOATTACK[0]),
        ("new classes, clean", {"part": "new", "test_classes": "new"}, None, ""),
        (f"new classes, PGD-100, {EPS[0]}", {"part": "new", "test_classes": "new"}, EPS[0], ""),
        ("corrupted, clean", {"part": "corrupted"}, None, ""),
    )
    rows = []
    for model in MODELS:
        for method in METHODS[1:]:
            row = [model, name_of(method)]
            for _, facts, eps, attack in columns:
                both = [select(cells, model=model, method=m, **facts) for m in (method, METHODS[0])]
                row.append(_gain(*both, eps, attack or run.ATTACK))
            if set(row[2:]) != {"-"}:
                seeds = len(select(cells, model=model, method=method, part="main"))
                rows.append([*row[:2], str(seeds), *row[2:]])
    head = ["", "method", "seeds", *(words for words, *_ in columns)]
    return markdown(head, rows) if rows else ""


def _gain(own: Sequence[Row], bare: Sequence[Row], eps: str | None, attack: str) -> str:
    """Format a difference with half its 95 % interval over the images; "-" if cells are missing."""
    if not own or {c["test"] for c in own} != {c["test"] for c in bare} or not bare:
        return "-"
    if own[0]["part"] == "corrupted" and len(bare) < len(CORRUPTED):
        return "-"
    return gain(standing(own, eps, attack), standing(bare, eps, attack))


def shots_table(cells: Sequence[Row]) -> str:
    """Format the accuracies of the first seed after tuning on 1, 4 and 16 images per class."""
    rows = []
    for model in MODELS:
        for method, few in SHOTS.items():
            row = [model, name_of(method)]
            for shots in (*few, 16):
                part = "main" if shots == 16 else "shots"
                own = select(cells, part=part, model=model, method=method, shots=shots, seed=0)
                row += [spread(accuracies(own, eps)) or "-" for eps in (None, EPS[0])]
            if set(row[2:]) != {"-"}:
                rows.append(row)
    head = ["", "method", *(f"{n}: {k}" for n in (1, 4, 16) for k in ("clean", EPS[0]))]
    return markdown(head, rows) if rows else ""


def difference(
    with_: Sequence[Row], without: Sequence[Row], eps: str | None
) -> tuple[float, float, str]:
    """Return a claim's mean paired difference, half its 95 % interval's width, and a verdict.

    The variance of the mean is that over the seeds, with Student's t distribution, plus that over
    the images.

    Args:
        with_, without: one cell for each seed, in the same order.
        eps: radius, or None for the clean accuracy.
    """
    pairs = zip(*(accuracies(side, eps) for side in (with_, without)), strict=True)
    by_seed = [a - b for a, b in pairs]
    mean = statistics.mean(by_seed)
    if len(by_seed) < len(SEEDS):
        return mean, float("inf"), NOT_YET
    images = [a - b for a, b in zip(*(standing(s, eps) for s in (with_, without)), strict=True)]
    over_seeds = QUANTILE * statistics.stdev(by_seed) / len(by_seed) ** 0.5
    half = math.hypot(over_seeds, of_images(images))
    verdict = "within noise" if abs(mean) <= half else "seen" if mean > 0 else "not seen (lower)"
    return mean, half, verdict


def claims_table(cells: Sequence[Row]) -> str:
    """Format each claim's difference, clean and robust, with its verdict."""
    rows = []
    for method, part, label, preset_has, words in CLAIMS:
        preset = select(cells, part="main", method=method, model=MODELS[1])
        changed = select(cells, part=part, label=label)
        by_seed = [{c["seed"]: c for c in side} for side in (preset, changed)]
        with_, without = by_seed if preset_has else reversed(by_seed)
        seeds = sorted(with_.keys() & without.keys())
        if not seeds:
            continue
        row = [words, str(len(seeds))]
        for eps in (None, EPS[0]):
            sides = ([own[seed] for seed in seeds] for own in (with_, without))
            mean, half, verdict = difference(*sides, eps)
            width = f" ± {half:.1f}" if math.isfinite(half) else ""
            row += [f"{mean:+.1f}{width}", verdict]
        rows.append(row)
    head = ["claim", "seeds", "clean", "", f"PGD-100, {EPS[0]}", ""]
    return markdown(head, rows) if rows else ""


def losses_table(cells: Sequence[Row]) -> str:
    """Format the validation accuracies of the compared pairs of `objective` and `attack_loss`.

    Differences are those of the images that withstand both attacks, in points.
    """
    rows = []
    for model in MODELS:
        own = select(cells, part="losses", model=model)
        for cell in own:
            pair = _pair(cell)
            bases = [
                [c for c in own if c["method"] == METHODS[0]],
                [c for c in own if c["method"] == cell["method"] and _pair(c) == PUBLISHED],
            ]
            stands = standing([cell], EPS[0], BOTH)
            shown = [*accuracies([cell], None), *accuracies([cell], EPS[0], APGD[0])]
            shown += [statistics.mean(stands)]
            gains = [
                gain(stands, standing(base, EPS[0], BOTH)) if base and cell not in base else ""
                for base in bases
            ]
            words = [model, name_of(cell["method"]), *pair, _searched(cell)]
            rows.append([*words, *(f"{value:.1f}" for value in shown), *gains])
    head = ["", "method", "objective", "attack_loss", "search", "clean", APGD[0], "both"]
    head += ["from zero-shot", "from the published pair"]
    return markdown(head, rows) if rows else ""


def _searched(cell: Row) -> str:
    """Return the precision in which a cell's attacks searched."""
    found = {row["search_precision"] for row in cell["rows"] if row["attack"] in APGD}
    return ", ".join(sorted("fp32" if precision == "own" else precision for precision in found))


def _pair(cell: Row) -> tuple[str, ...]:
    """Return objective and attack loss; empty for the zero-shot classifier."""
    changes = dict(cell["changes"])
    return tuple(changes.get(key, "") for key in ("objective", "attack_loss"))


def _missing(cells: Sequence[Row]) -> str:
    whole = photo_cells()
    counts = [f"{len(cells)} of {len(whole)} runs are measured."]
    parts = dict.fromkeys(cell.part for cell in whole)
    counts += [
        f"`{part}`: {len(select(cells, part=part))} of {sum(c.part == part for c in whole)}."
        for part in parts
    ]
    return " ".join(counts)


def blocks(results: Path) -> dict[str, str]:
    """Return the text of each marked block."""
    file = results / run.PHOTOS.name
    cells = read_json(file)["cells"] if file.exists() else []
    known = {cell.name for cell in photo_cells()}
    cells = [cell for cell in cells if cell_of(cell).name in known]
    tables: dict[str, Callable[[Sequence[Row]], str]] = {
        "photos-main": main_table,
        "photos-new": new_table,
        "photos-corrupted": corrupted_table,
        "photos-shots": shots_table,
        "photos-claims": claims_table,
        "photos-losses": losses_table,
        SHORT: short_table,
        CHOICE: choice_table,
        "photos-missing": _missing,
    }
    found = {name: table(cells) for name, table in tables.items()}
    empty = f"{NOT_YET[0].upper()}{NOT_YET[1:]}."
    return {name: text or empty for name, text in found.items()}
