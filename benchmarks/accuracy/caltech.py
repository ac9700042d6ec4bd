"""Two protocols of the papers on the whole Caltech101 in CoOp's layout and splits.

python -m benchmarks.accuracy caltech measure DATA --protocol few-shot   # 46 cells, hours
python -m benchmarks.accuracy caltech measure DATA --protocol base-to-new   # 16 cells
python -m benchmarks.accuracy caltech collect DATA   # finished cells into the result file
python -m benchmarks.accuracy caltech table
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fastprompt import protocols
from fastprompt._utils.files import read_json
from fastprompt.evaluation import Evaluation
from fastprompt.protocols.finishing import result_file
from fastprompt.protocols.running import check_plan

from ..common.paths import TWO_CORES
from ..common.report import NOT_YET, markdown, write
from .methods.photo_cells import EARLIER_NAP

RESULT, RUNS = TWO_CORES / "caltech101.json", Path("runs/caltech101")
DATA, CLEAN, ROBUST = "coop:Caltech101", "clean", "pgd-20"
METHODS = ("zero-shot", "advpt", "apt", "ampt", "capt", "nap")
SHOTS = {"few-shot": (1, 4, 16), "base-to-new": (16,)}
SEEDS = (1, 2, 3)
# 500 test images, drawn by seed 0; the presets of the bundled model, for NAP and AMPT earlier ones
OPTIONS: dict[str, Any] = {
    "seeds": SEEDS,
    "eval_eps": "1/255",
    "limit": 500,
    "sanity": "off",
    "settings": {"nap": {**EARLIER_NAP, "attack_loss": "ce"}, "ampt": {"attack_loss": "ce"}},
}


def _plan(protocol: str, root: str) -> protocols.Plan:
    shots = SHOTS[protocol]
    return protocols.make_plan(protocol, METHODS, DATA, root=root, shots=shots, **OPTIONS)


def measure(root: str, protocol: str = "few-shot", runs: str = str(RUNS)) -> None:
    """Run a protocol's cells that are not finished, on one thread.

    Args:
        root: folder with ``caltech-101``.
        protocol: ``"few-shot"`` or ``"base-to-new"``.
        runs: folder of the protocols' run folders.
    """
    torch.set_num_threads(1)
    protocols.execute(_plan(protocol, root), Path(runs) / protocol, resume=True)


def collect(root: str, runs: str = str(RUNS), out: str = str(RESULT)) -> None:
    """Write the accuracies of all finished cells into the result file.

    Raises:
        ValueError: a folder holds another plan.
    """
    torch.set_num_threads(1)  # as in `measure`; the file says so
    found = {name: list(_finished(_plan(name, root), Path(runs) / name)) for name in SHOTS}
    write(Path(out), {"model": "tiny-photos", "images": OPTIONS["limit"], **found})
    show(out)


def _finished(plan: protocols.Plan, folder: Path) -> Iterator[dict[str, Any]]:
    if not folder.exists():
        return
    check_plan(plan, folder)
    for cell in plan.cells:
        for judged in cell.judged:
            file = result_file(folder / "cells" / cell.folder, judged)
            if file.exists():
                clean, robust = Evaluation.load(file).rows
                own = {"method": cell.method, "shots": cell.shots, "seed": cell.seed}
                accuracy = {CLEAN: clean["accuracy"], ROBUST: robust["accuracy"]}
                yield {**own, "column": judged.column, **accuracy}


# ---- the tables --------------------------------------------------------------------------------


def _columns(protocol: str) -> list[str]:
    return ["base", "new", "H"] if protocol == "base-to-new" else [str(n) for n in SHOTS[protocol]]


def _by_seed(rows: Sequence[Mapping[str, Any]], column: str, accuracy: str) -> dict[Any, float]:
    """Return the accuracies of a column by seed, in percent; zero-shot's of any shots."""
    if column == "H":
        base, new = (_by_seed(rows, part, accuracy) for part in ("base", "new"))
        return {s: statistics.harmonic_mean([base[s], new[s]]) for s in base if s in new}
    own = [r for r in rows if (r["column"] or str(r["shots"] or column)) == column]
    return {row["seed"]: 100 * row[accuracy] for row in own}


def _text(values: Sequence[float]) -> str:
    """Format a mean and standard deviation."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def text(result: Mapping[str, Any]) -> str:
    """Return both protocols' tables, with the number of seeds that are measured."""
    parts = []
    for protocol in SHOTS:
        if not result[protocol]:
            parts.append(f"`{protocol}`: {NOT_YET}.")
            continue
        columns = _columns(protocol)
        head = ["method", *(f"{a}, {c}" for a in (CLEAN, ROBUST) for c in columns), "seeds"]
        lines = []
        for method in METHODS:
            rows = [row for row in result[protocol] if row["method"] == method]
            found = [list(_by_seed(rows, c, a).values()) for a in (CLEAN, ROBUST) for c in columns]
            counts = dict.fromkeys(str(len(values)) for values in found)
            seeds = "" if method == METHODS[0] else ", ".join(counts)
            lines.append([method, *map(_text, found), seeds])
        parts.append(f"`{protocol}`:\n\n{markdown(head, lines)}")
    return "\n\n".join(parts)


def show(out: str = str(RESULT)) -> None:
    """Print the file's tables."""
    print(text(read_json(Path(out))))
