"""Compares the losses of the attack and the objectives of tuning, on validation images.

python -m benchmarks.accuracy losses measure --model tiny-shapes-robust --data shapes
python -m benchmarks.accuracy losses measure --methods '[nap]' --seeds '[0, 1, 2]' --share 0
python -m benchmarks.accuracy losses collect   # writes finished cells into the result file
python -m benchmarks.accuracy losses table
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from fastprompt import evaluate, load_clip, load_data
from fastprompt._utils.files import write_json
from fastprompt._utils.run_folder import RunFolder
from fastprompt.methods.registry import TUNERS
from fastprompt.model.classifier import CLIPClassifier
from fastprompt.tuning.attack_loss import AttackLoss
from fastprompt.tuning.config import as_dict
from fastprompt.tuning.online import Objective

from ...common.paths import TWO_CORES
from ...common.report import table as aligned
from ...common.report import write
from .run import PRECISION, SHOTS

FOLDER = Path("runs") / "attack_losses"
RESULT = TWO_CORES / "attack_losses.json"
METHODS = ("nap", "ampt", "capt")
ATTACKS = ("apgd-ce", "apgd-t")  # an image stands that withstands both
# TRADES needs clean images, which the presets of these methods leave out
TRADES: Mapping[str, Mapping[str, Any]] = {"ampt": {"clean_share": 0.5}, "capt": {"ce": "clean"}}


@dataclasses.dataclass(frozen=True)
class LossCell:
    """One run, tuned on training images and judged on validation images.

    Attributes:
        method: a tuner's name, or ``"zero-shot"``, which has neither loss nor objective.
        changes: further settings of the tuning that differ from the preset, as JSON.
        eps, images: radii and number of images of the evaluation.
        search: precision of the attacks' search, see `fastprompt.evaluate`.
    """

    model: str
    data: str
    method: str
    seed: int = 0
    attack_loss: str = ""
    objective: str = ""
    changes: str = "{}"
    eps: tuple[str, ...] = ("1/255",)
    images: int = 200
    search: str = "own"

    @property
    def name(self) -> str:
        """A readable, unique file name."""
        return self._named(dataclasses.asdict(self))

    @property
    def tuning(self) -> str:
        """Name of the tuned prompts, which do not depend on the evaluation."""
        return self._named([self.data, self.settings])

    def _named(self, facts: Any) -> str:
        mark = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]
        parts = (self.model, self.method, self.objective, self.attack_loss, str(self.seed), mark)
        return "-".join(part for part in parts if part)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the tuning that differ from the preset."""
        own = TRADES.get(self.method, {}) if self.objective == "trades" else {}
        chosen = {"attack_loss": self.attack_loss, "objective": self.objective, **own}
        return {"precision": PRECISION, **chosen, **json.loads(self.changes), "seed": self.seed}


def cells(
    model: str, data: str, methods: Sequence[str], seeds: Sequence[int], **more: Any
) -> Iterator[LossCell]:
    """Yield the zero-shot classifier, then every pair of loss and objective of each method."""
    yield LossCell(model, data, "zero-shot", **{**more, "changes": "{}"})
    for seed in seeds:
        for method in methods:
            for objective in get_args(Objective):
                for loss in get_args(AttackLoss):
                    yield LossCell(model, data, method, seed, loss, objective, **more)


def _tuned(cell: LossCell) -> tuple[CLIPClassifier, dict[str, Any]]:
    """Return the cell's classifier, tuned now or resumed if necessary, and its settings."""
    clip = load_clip(cell.model)
    data = load_data(cell.data, shots=SHOTS, seed=cell.seed)
    if cell.method == "zero-shot":
        return clip.zero_shot(data.classnames, data.templates), {}
    kind, folder = TUNERS[cell.method], FOLDER / "tuned" / cell.tuning
    if not (folder / "prompts.safetensors").exists():
        tuner = kind(clip, data.classnames, **cell.settings)
        # without the validation images, which judge it
        tuner.fit(data.train, out=folder, resume=RunFolder(folder).started, progress=False)
    tuner = kind.load(folder, clip)
    return tuner.classifier_for(precision="fp32"), {"config": as_dict(tuner.config)}


def judge(cell: LossCell) -> dict[str, Any]:
    """Tune and evaluate a cell; return its row of the result file."""
    began = time.perf_counter()
    classifier, facts = _tuned(cell)
    found = evaluate(
        classifier,
        load_data(cell.data).val,
        list(ATTACKS),
        list(cell.eps),
        limit=cell.images,
        search_precision=cell.search,
        sanity="off",
        progress=False,
    )
    (clean,) = (row for row in found.rows if row["attack"] == "clean")
    rows = [{"eps": "", "attack": "clean", "accuracy": clean["accuracy"]}]
    for eps in cell.eps:
        flags = [found.row("model", attack, eps)["flags"] for attack in ATTACKS]
        stand = [set(pair) == {"1"} for pair in zip(*flags, strict=True)]
        of_each = {attack: found.row("model", attack, eps)["accuracy"] for attack in ATTACKS} | {
            "both": sum(stand) / len(stand)
        }
        rows += [{"eps": eps, "attack": a, "accuracy": share} for a, share in of_each.items()]
    return {
        **{"name": cell.name, **dataclasses.asdict(cell), **facts},
        **{"n": clean["n"], "rows": rows, "seconds": round(time.perf_counter() - began, 1)},
    }


def measure(
    model: str = "tiny-shapes-robust",
    data: str = "shapes",
    methods: Sequence[str] = METHODS,
    seeds: Sequence[int] = (0,),
    eps: Sequence[str] = ("1/255",),
    images: int = 200,
    changes: str = "{}",
    search: str = "own",
    share: int = 0,
    shares: int = 1,
) -> None:
    """Run all cells without a result, or this process's share of them, on one thread.

    Args:
        images: number of validation images that are attacked, the same in all cells.
        changes: settings of all tunings in addition to the preset, as JSON.
        search: precision of the attacks' search, see `fastprompt.evaluate`.
    """
    torch.set_num_threads(1)
    known = _recorded()
    more = {"eps": tuple(eps), "images": images, "changes": changes, "search": search}
    for number, cell in enumerate(cells(model, data, methods, seeds, **more)):
        file = FOLDER / "cells" / f"{cell.name}.json"
        if number % shares != share or file.exists() or cell.name in known:
            continue
        row = judge(cell)
        write_json(file, row)
        shown = {f"{r['attack']} {r['eps']}": round(100 * r["accuracy"], 1) for r in row["rows"]}
        print(cell.name, shown, flush=True)


def _recorded() -> dict[str, Any]:
    """Return the result file's rows by cell name; delete the file to measure everything again."""
    rows = json.loads(RESULT.read_text("utf-8"))["cells"] if RESULT.exists() else []
    return {row["name"]: row for row in rows}


def _finished() -> dict[str, Any]:
    """Return the rows of the result file and of the finished cells."""
    files = sorted((FOLDER / "cells").glob("*.json"))
    found = [json.loads(file.read_text("utf-8")) for file in files]
    return _recorded() | {row["name"]: row for row in found}


def collect() -> None:
    """Add the finished cells to the result file."""
    write(RESULT, {"attacks": ATTACKS, "cells": [row for _, row in sorted(_finished().items())]})


def lines(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the table: mean accuracies over the seeds, in percent."""
    keys = list(dict.fromkeys((r["eps"], r["attack"]) for row in rows for r in row["rows"]))
    head = ["model", "method", "objective", "attack_loss", "changes"]
    out = [[*head, "seeds", *(" ".join((attack, eps)).strip() for eps, attack in keys)]]
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in head), []).append(row)
    for group, own in groups.items():
        found = [{(r["eps"], r["attack"]): r["accuracy"] for r in row["rows"]} for row in own]
        means = [[row[key] for row in found if key in row] for key in keys]
        shown = [f"{100 * statistics.mean(m):.1f}" if m else "" for m in means]
        out.append([*group, str(len(own)), *shown])
    return out


def table() -> None:
    """Print the table of the finished cells."""
    print(aligned(lines([row for _, row in sorted(_finished().items())])))
