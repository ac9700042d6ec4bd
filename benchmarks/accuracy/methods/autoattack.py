"""AutoAttack and PGD-100 on the main table's first seeds, on the same images, with checks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from fastprompt import evaluate, load_data
from fastprompt._utils.files import write_json

from ...common.paths import TWO_CORES
from ...common.report import write
from .cells import BASE_EPS, Cell, main_cells
from .run import ATTACK, FOLDER, classifier_of

RESULT = TWO_CORES / "methods_autoattack.json"
IMAGES, BATCH = 200, 100
KEPT = ("attack", "eps", "accuracy", "interval", "n", "stalled", "trusted", "gradients", "forwards")


def strong_cells() -> list[Cell]:
    """Return the first seed of every method on both models."""
    return [cell for cell in main_cells() if cell.seed == 0]


def _file(cell: Cell) -> Path:
    return FOLDER / "autoattack" / f"{cell.name}.json"


def _judge(cell: Cell) -> dict[str, Any]:
    data = load_data(cell.test)
    classifier, _ = classifier_of(cell, data.classnames, data.templates)
    found = evaluate(
        classifier,
        data.test,
        [ATTACK, "autoattack"],
        BASE_EPS,
        batch=BATCH,
        limit=IMAGES,
        progress=False,
    )
    return {
        "name": cell.name,
        "model": cell.model,
        "method": cell.method,
        "rows": [{k: row[k] for k in KEPT} for row in found.rows],
        "parts": found.row("model", "autoattack", BASE_EPS)["parts"],
        "checks": {row["check"]: row["verdict"] for row in found.sanity},
        "reasons": found.reasons,
    }


def autoattack(method: str | None = None) -> None:
    """Evaluate the runs that have no result yet, and write the result file.

    Runs on one thread, beside other processes; uses the prompts that `measure` tuned.
    """
    torch.set_num_threads(1)
    for cell in strong_cells():
        if _file(cell).exists() or method not in (None, cell.method):
            continue
        row = _judge(cell)
        write_json(_file(cell), row)
        print(cell.model, cell.method, [r["accuracy"] for r in row["rows"]], flush=True)
    done = [_file(cell) for cell in strong_cells() if _file(cell).exists()]
    write(RESULT, {"cells": [json.loads(path.read_text("utf-8")) for path in done]})
