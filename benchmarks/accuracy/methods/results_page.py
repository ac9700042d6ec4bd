"""Writes docs/results.md from the committed result file."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastprompt.evaluation.record import STANDS
from fastprompt.methods.registry import TUNERS

from ...common.paths import ROOT
from ...common.report import markdown
from . import autoattack
from .cells import IMAGES, METHODS, MODELS, PRECISION_EPS, PRECISIONS, SHIFTED, TEST_EPS, all_cells
from .page_text import TEXT
from .run import ATTACK, RESULT, SHOTS, rows_of

PAGE = ROOT / "docs" / "results.md"
NAMES = {"coop": "CoOp", "advpt": "AdvPT"} | {m: m.upper() for m in ("apt", "ampt", "capt", "nap")}
Row = Mapping[str, Any]


def name_of(method: str) -> str:
    """Return a method's name as in its paper."""
    return NAMES.get(method, method)


def accuracies(cells: Sequence[Row], eps: str | None, attack: str = ATTACK) -> list[float]:
    """Return the accuracy of each cell in percent: clean (``eps`` None) or under the attack."""
    radius = 0.0 if eps is None else int(eps.split("/")[0]) / 255
    attack = "clean" if eps is None else attack
    return [
        round(100 * row["accuracy"], 9)  # 100 * 0.2725 is slightly more than 27.25
        for cell in cells
        for row in cell["rows"]
        if row["attack"] == attack and (eps is None or abs(row["eps"] - radius) < 1e-9)
    ]


def shares(flags: Sequence[str]) -> list[float]:
    """Return for each image how often it is classified correctly, in percent of the evaluations."""
    return [100 * column.count(STANDS) / len(flags) for column in zip(*flags, strict=True)]


def of_images(each: Sequence[float]) -> float:
    """Return half the width of the 95 % interval of a mean over images."""
    return 1.96 * statistics.stdev(each) / len(each) ** 0.5


def gain(own: Sequence[float], base: Sequence[float]) -> str:
    """Format the mean difference of two `shares` of the same images, with half its interval."""
    each = [a - b for a, b in zip(own, base, strict=True)]
    return f"{statistics.mean(each):+.1f} ± {of_images(each):.1f}"


def spread(values: Sequence[float]) -> str:
    """Format mean and range; a single value without a range."""
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def _seconds(cells: Sequence[Row], key: str) -> str:
    values = [cell[key] for cell in cells if key in cell]
    return f"{statistics.mean(values):.3g}" if values else ""


def radius_of(cell: Row) -> str:
    """Return the radius of the tuning; empty without an attack in it."""
    attacks = cell["method"] in TUNERS and TUNERS[cell["method"]].attacks_images
    return f"{255 * cell['config']['eps']:g}/255" if attacks else ""


def main_table(cells: Sequence[Row], model: str) -> str:
    """Format one model's results: accuracies with ranges, costs, trainable parameters."""
    rows = []
    for method in METHODS:
        own = [c for c in cells if (c["part"], c["model"], c["method"]) == ("main", model, method)]
        if not own:
            continue
        attacked = [spread(accuracies(own, eps)) for eps in TEST_EPS]
        costs = [_seconds(own, key) for key in ("step_seconds", "tuning_seconds")]
        trained = f"{own[0]['parameters']:,}" if "parameters" in own[0] else ""
        seeds = "" if method == "zero-shot" else str(len(own))
        clean, tuned_at = spread(accuracies(own, None)), radius_of(own[0])
        rows.append([name_of(method), tuned_at, clean, *attacked, *costs, trained, seeds])
    head = [
        "method",
        "tuned at",
        "clean",
        *TEST_EPS,
        "s a step",
        "s in all",
        "trained parameters",
        "seeds",
    ]
    return markdown(head, rows)


def shift_table(cells: Sequence[Row], model: str) -> str:
    """Format clean and robust accuracy on the shifted images."""
    rows = []
    for method in METHODS:
        row = [name_of(method)]
        for test in SHIFTED:
            key = ("shift", model, method, test)
            own = [c for c in cells if (c["part"], c["model"], c["method"], c["test"]) == key]
            row += [spread(accuracies(own, None)), spread(accuracies(own, "2/255"))]
        if any(row[1:]):
            rows.append(row)
    head = [
        "method",
        *(f"{t.removeprefix('shapes-')} {k}" for t in SHIFTED for k in ("clean", "2/255")),
    ]
    return markdown(head, rows)


def harmonic(base: Sequence[float], new: Sequence[float]) -> str:
    """Format the harmonic mean of two accuracies."""
    return f"{statistics.harmonic_mean([base[0], new[0]]):.1f}" if base and new else ""


def new_table(cells: Sequence[Row]) -> str:
    """Format the accuracy on base and new classes and their harmonic mean."""
    rows = []
    for method in METHODS:
        own = [c for c in cells if c["part"] == "new" and c["method"] == method]
        row = [name_of(method)]
        for eps in (None, "2/255"):
            base, new = (
                accuracies([c for c in own if c["test_classes"] == half], eps)
                for half in ("base", "new")
            )
            row += [spread(base), spread(new), harmonic(base, new)]
        if any(row[1:]):
            rows.append(row)
    head = [
        "method",
        *(f"{half} {k}" for k in ("clean", "2/255") for half in ("base", "new", "mean")),
    ]
    return markdown(head, rows)


def precision_pairs(
    cells: Sequence[Row], model: str, method: str, eps: str | None
) -> list[tuple[float, float]]:
    """Return the accuracy of each seed, tuned in float32 and in ``precision="auto"``."""
    own: dict[int, dict[str, float]] = {}
    for cell in cells:
        if (cell["part"], cell["model"], cell["method"]) == ("precision", model, method):
            (_, precision), *_ = cell["changes"]
            own.setdefault(cell["seed"], {})[precision] = accuracies([cell], eps)[0]
    first, second = PRECISIONS
    # a seed whose second run is missing shows nothing
    return [(own[k][first], own[k][second]) for k in sorted(own) if len(own[k]) == len(PRECISIONS)]


def precision_table(cells: Sequence[Row]) -> str:
    """Format the accuracies of all seeds in both precisions, and the mean of the differences."""
    lines = []
    for model, radius in PRECISION_EPS.items():
        for method in METHODS:
            for eps in (None, radius):
                pairs = precision_pairs(cells, model, method, eps)
                if not pairs:
                    continue
                seeds = (
                    ", ".join(f"{value:.1f}" for value in one) for one in zip(*pairs, strict=True)
                )
                mean = statistics.mean(auto - own for own, auto in pairs)
                lines.append([model, name_of(method), eps or "clean", *seeds, f"{mean:+z.1f}"])
    head = ["", "method", "accuracy", "float32", '`"auto"`', "mean difference"]
    return markdown(head, lines)


def claim_table(cells: Sequence[Row], claim: str) -> str:
    """Format one row for each changed setting."""
    rows = [
        [
            name_of(c["method"]),
            c["label"],
            spread(accuracies([c], None)),
            spread(accuracies([c], "2/255")),
            f"{c['step_seconds']:.3g}",
            f"{c['parameters']:,}",
        ]
        for c in cells
        if c["part"] == claim
    ]
    head = ["method", "changed", "clean", "2/255", "s a step", "trained parameters"]
    return markdown(head, rows)


def strong_table(path: Path = autoattack.RESULT) -> str:
    """Format the accuracy after each attack, and the verdict of the checks."""
    lines = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        shares = [f"{100 * row['accuracy']:.1f}" for row in cell["rows"]]
        n = cell["rows"][0]["n"]
        left = [f"{100 * part['standing'] / n:.1f}" for part in cell["parts"]]
        low, high = (100 * bound for bound in cell["rows"][-1]["interval"])
        verdict = "not to be trusted" if cell["reasons"] else "passed"
        interval = f"{shares[2]} [{low:.1f}, {high:.1f}]"
        lines.append(
            [cell["model"], name_of(cell["method"]), *shares[:2], *left[:-1], interval, verdict]
        )
    parts = ("apgd-ce", "apgd-t", "fab-t")
    head = ["", "method", "clean", "pgd-100", *parts, "square: AutoAttack", "checks"]
    return markdown(head, lines)


def _counts(cells: Sequence[Row]) -> str:
    """Return the evaluated iterates, as recorded in the rows."""
    said = (row["settings"].get("counts") for cell in cells for row in cell["rows"])
    return " or ".join(sorted({words for words in said if words}))


def page(path: Path = RESULT) -> str:
    """Return the text of the whole page."""
    cells = rows_of(path)
    tables = {f"main:{model}": main_table(cells, model) for model in MODELS}
    tables |= {f"shift:{model}": shift_table(cells, model) for model in MODELS}
    tables["new"] = new_table(cells)
    tables["precision"] = precision_table(cells)
    tables |= {"strong": strong_table(), "strong images": str(autoattack.IMAGES)}
    for claim in ("mixture", "refiners", "layers", "balance", "depth"):
        tables[claim] = claim_table(cells, claim)
    tables |= {"images": str(IMAGES), "counts": _counts(cells), "shots": str(SHOTS)}
    whole = len(all_cells())
    missing = f"**Incomplete: {len(cells)} of {whole} runs are measured.**\n"
    tables["missing"] = missing if len(cells) < whole else ""
    text = TEXT
    for key, table in tables.items():
        text = text.replace(f"<{key}>", table)
    return text


def table() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE}")
