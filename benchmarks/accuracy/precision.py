"""Compares the search in a low precision with that in the model's own, on the same images.

python -m benchmarks.accuracy precision measure   # zero-shot and all tuned first seeds
python -m benchmarks.accuracy precision measure --methods '[zero-shot]' --images 50
python -m benchmarks.accuracy precision table
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fastprompt import evaluate, load_data
from fastprompt._utils.devices import usable_device

from ..common.paths import TWO_CORES
from ..common.report import table, write
from .methods.cells import METHODS, Cell, main_cells
from .methods.results_page import name_of
from .methods.run import classifier_of

RESULT = TWO_CORES / "search_precision.json"
RADII, ATTACKS = ("1/255", "2/255"), ("pgd-20", "apgd-ce")
MOST = 1 / 200  # images that may stand in one of the two evaluations alone


def measure(
    methods: Sequence[str] = METHODS,
    images: int = 200,
    precision: str = "bf16",
    attacks: Sequence[str] = ATTACKS,
    eps: Sequence[str] = RADII,
    device: str = "cpu",
    out: str = str(RESULT),
) -> None:
    """Evaluate the classifiers of both bundled models with both searches; write the file.

    Raises:
        RuntimeError: the images that stand differ by more than 1 in 200.
    """
    rows = []
    for cell in main_cells():
        if cell.method in methods and not cell.seed:
            rows += _compare(cell, images, precision, attacks, eps, device)
    about = {"images": images, "precision": precision, "threads": torch.get_num_threads()}
    write(Path(out), {**about, "device": device, "rows": rows})
    show(out)
    if beyond := [row for row in rows if not held(row)]:
        raise RuntimeError(f"the images that stand differ by more than 1 in 200: {beyond}")


def _compare(
    cell: Cell,
    images: int,
    precision: str,
    attacks: Sequence[str],
    eps: Sequence[str],
    device: str,
) -> list[dict[str, Any]]:
    data = load_data(cell.test)
    classifier, _ = classifier_of(cell, data.classnames, data.templates)
    classifier.to(usable_device(device))
    options: dict[str, Any] = {"limit": images, "sanity": "off", "batch": 100}
    own, low = (
        evaluate(classifier, data.test, attacks, eps, search_precision=search, **options)
        for search in ("own", precision)
    )
    rows = []
    for a, b in zip(own.rows[1:], low.rows[1:], strict=True):
        pairs = list(zip(a["flags"], b["flags"], strict=True))
        rows.append(
            {
                **{"model": cell.model, "method": cell.method},
                **{key: a[key] for key in ("attack", "eps", "n")},
                "attacked": own.rows[0]["correct"],
                "own": a["correct"],
                "low": b["correct"],
                # in favor of the defense, and of the attack
                "only_low": pairs.count(("0", "1")),
                "only_own": pairs.count(("1", "0")),
                "confirmed": {k: b.get("confirmed", {}).get(k, 0) for k in ("attacked", "fell")},
                "seconds": {"own": a["seconds"], "low": b["seconds"]},
            }
        )
        print(rows[-1], flush=True)
    return rows


def held(row: dict[str, Any]) -> bool:
    """Whether the images that stand differ by at most 1 in 200."""
    return max(row["only_low"], row["only_own"], abs(row["own"] - row["low"])) <= MOST * row["n"]


def lines(out: Path = RESULT) -> list[list[str]]:
    """Return the rows of the file's table."""
    result = json.loads(out.read_text("utf-8"))
    low = result["precision"]
    head = ["model", "method", "attack", "eps", "attacked", "stand (own)", f"stand ({low})"]
    found = [[*head, f"only {low}", "only own", "stood before confirming"]]
    for row in result["rows"]:
        counts = (row[key] for key in ("attacked", "own", "low", "only_low", "only_own"))
        found.append(
            [
                row["model"],
                name_of(row["method"]),
                row["attack"],
                f"{255 * row['eps']:g}/255",
                *map(str, counts),
                str(row["low"] + row["confirmed"]["fell"]),
            ]
        )
    return found


def show(out: str = str(RESULT)) -> None:
    """Print the file's table."""
    print(table(lines(Path(out))))
