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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from fastprompt import evaluate, load_clip, load_data
from fastprompt._utils.files import write_json
from fastprompt._utils.run_folder import RunFolder
from fastprompt.evaluation.record import FELL, STANDS
from fastprompt.methods.registry import TUNERS
from fastprompt.model.classifier import CLIPClassifier
from fastprompt.tuning.attack_loss import AttackLoss
from fastprompt.tuning.config import as_dict
from fastprompt.tuning.online import Objective

from ...common.paths import TWO_CORES
from ...common.report import table as aligned
from ...common.report import write
from .results_page import gain, shares
from .run import PRECISION, SHOTS

FOLDER = Path("runs") / "attack_losses"
RESULT = TWO_CORES / "attack_losses.json"
METHODS = ("nap", "ampt", "capt")
ATTACKS = ("apgd-ce", "apgd-t")  # an image stands that withstands both
PUBLISHED = ("ce", "ce")  # objective and attack loss
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
    rows = [_row("", "clean", clean["flags"])]
    for eps in cell.eps:
        flags = {attack: found.row("model", attack, eps)["flags"] for attack in ATTACKS}
        both = "".join(
            STANDS if set(one) == {STANDS} else FELL for one in zip(*flags.values(), strict=True)
        )
        rows += [_row(eps, attack, of) for attack, of in {**flags, "both": both}.items()]
    return {"name": cell.name, **dataclasses.asdict(cell), **facts, "n": clean["n"], "rows": rows}


def _row(eps: str, attack: str, flags: str) -> dict[str, Any]:
    accuracy = flags.count(STANDS) / len(flags)
    return {"eps": eps, "attack": attack, "accuracy": accuracy, "flags": flags}


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
    """Return the table: mean accuracies over the seeds, in percent.

    The last columns are the differences in points from the published pair, `PUBLISHED`, with half
    the 95 % interval over the images.
    """
    keys = list(dict.fromkeys((r["eps"], r["attack"]) for row in rows for r in row["rows"]))
    radii = [eps for eps, attack in keys if attack == "both"]
    head = ["model", "method", "objective", "attack_loss", "changes", "images", "seeds"]
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        own = (*(row[k] for k in head[:4]), _changes(row), str(row["images"]), row["search"])
        groups.setdefault(own, []).append(row)
    published = {(*k[:2], *k[5:]): own for k, own in groups.items() if k[2:4] == PUBLISHED}
    out = [
        [
            *head,
            *(" ".join((a, eps)).strip() for eps, a in keys),
            *(f"both {e}, difference" for e in radii),
        ]
    ]
    for group, own in groups.items():
        means = [_mean(_flags(own, *key)) for key in keys]
        base = published.get((*group[:2], *group[5:]), [])
        gains = [_gain(_flags(own, eps, "both"), _flags(base, eps, "both")) for eps in radii]
        out.append([*group[:-1], str(len(own)), *means, *gains])
    return out


def _changes(row: Mapping[str, Any]) -> str:
    """Return the settings that differ from the preset, other than loss and objective."""
    own = TRADES.get(row["method"], {}) if row["objective"] == "trades" else {}
    changed = {**own, **json.loads(row["changes"])}
    return ", ".join(f"{key}={value}" for key, value in changed.items())


def _flags(rows: Sequence[Mapping[str, Any]], eps: str, attack: str) -> list[float]:
    """Return for each image how often it stands in these rows, in percent."""
    found = [
        r["flags"] for row in rows for r in row["rows"] if (r["eps"], r["attack"]) == (eps, attack)
    ]
    return shares(found)


def _mean(each: Sequence[float]) -> str:
    return f"{statistics.mean(each):.1f}" if each else ""


def _gain(own: Sequence[float], base: Sequence[float]) -> str:
    return gain(own, base) if own and base and own != base else ""


def table() -> None:
    """Print the table of the finished cells."""
    print(aligned(lines([row for _, row in sorted(_finished().items())])))
