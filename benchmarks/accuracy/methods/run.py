"""Tunes and evaluates cells, with one JSON file for each, so that a stopped run resumes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from fastprompt import evaluate, load_clip, load_data
from fastprompt._utils.files import write_json
from fastprompt._utils.run_folder import RunFolder
from fastprompt.data.dataset import ImageDataset
from fastprompt.methods.registry import TUNERS
from fastprompt.model.classifier import CLIPClassifier
from fastprompt.tuning.config import as_dict
from fastprompt.tuning.tuner import Tuner

from ...common.machine import facts as machine
from ...common.paths import TWO_CORES
from .cells import Cell, all_cells
from .photo_cells import APGD, AUTOATTACK, photo_cells
from .radii import from_the_largest

FOLDER = Path("runs") / "methods"
RESULT = TWO_CORES / "methods.json"
PHOTOS = TWO_CORES / "methods_photos.json"
SHOTS = 16
# photographs are attacked in windows of eight batches, from which a stopped evaluation resumes
BATCH: Mapping[str, int] = {"shapes": 400, "photos": 16}
ATTACK = "pgd-100"
STRONG = (*APGD, *AUTOATTACK)
PRECISION = "bf16"  # of the tuning; the evaluation judges in float32
KEPT = (
    *("attack", "eps", "accuracy", "n", "interval", "trusted", "settings", "flags"),
    *("search_precision", "confirmed", "parts", "gradients", "forwards", "withstood_before"),
)
Study = Literal["shapes", "photos"]
STUDIES: dict[Study, tuple[Callable[[], list[Cell]], Path]] = {
    "shapes": (all_cells, RESULT),
    "photos": (photo_cells, PHOTOS),
}


def settings(cell: Cell) -> dict[str, Any]:
    """Return the settings that differ from the preset."""
    return {"precision": PRECISION, "seed": cell.seed, **dict(cell.changes)}


def _folder(cell: Cell) -> Path:
    mark = hashlib.sha256(json.dumps(cell.tuning).encode()).hexdigest()[:12]
    return FOLDER / "tuned" / f"{cell.method}-{mark}"


def tune(cell: Cell) -> Tuner:
    """Return a cell's tuner, loaded from its folder, or tuned now on one thread and saved there.

    Raises:
        ValueError: the folder holds prompts that were tuned with other settings.
    """
    torch.set_num_threads(1)  # the times of all runs are those of one thread
    clip = load_clip(cell.model)
    data = load_data(cell.data, shots=cell.shots, seed=cell.seed, classes=cell.classes)
    kind, folder = TUNERS[cell.method], _folder(cell)
    tuner = kind(clip, data.classnames, **settings(cell))
    if not folder.exists():
        _fit(tuner, data.train, folder)
    found = kind.load(folder, clip)
    if as_dict(found.config) != as_dict(tuner.config):
        raise ValueError(f"{folder} was tuned with other settings than {cell.name}; delete it")
    return found


def _fit(tuner: Tuner, train: Any, folder: Path) -> None:
    """Tune in a new folder that gets its name when it is complete: nobody sees a part of a run.

    Validation images are left out. No preset uses them, and they would take time.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    began = time.process_time()  # of one thread: what else runs, or a pause, does not count
    tuner.fit(train, out=part, progress=False)
    write_json(part / "seconds.json", {"fit": time.process_time() - began})
    if folder.exists():  # another process was faster
        shutil.rmtree(part)
    else:
        part.rename(folder)


def _tuning_facts(cell: Cell, tuner: Tuner) -> dict[str, Any]:
    """Return configuration and costs of the tuning, from its folder's metrics."""
    rows = RunFolder(_folder(cell)).read_metrics()
    images = len(load_data(cell.data, shots=cell.shots, seed=cell.seed, classes=cell.classes).train)
    batches = -(-images // tuner.config.batch)
    each = [row.get("tuning_seconds", row["seconds"]) / batches for row in rows]
    return {
        "config": as_dict(tuner.config),
        "parameters": sum(p.numel() for p in tuner.prompts.parameters()),
        "step_seconds": statistics.median(each),
        "tuning_seconds": json.loads((_folder(cell) / "seconds.json").read_text())["fit"],
    }


def classifier_of(cell: Cell, names: list[str], templates: Any) -> tuple[CLIPClassifier, Any]:
    """Return a cell's classifier, tuned now if necessary, and the costs of its tuning."""
    if cell.method == "zero-shot":
        return load_clip(cell.model).zero_shot(names, templates), {}
    tuner = tune(cell)
    return tuner.classifier_for(names, precision="fp32"), _tuning_facts(cell, tuner)


def judge(cell: Cell) -> dict[str, Any]:
    """Evaluate a cell and return its row of the result file."""
    data = load_data(cell.test, classes=cell.test_classes)  # type: ignore[arg-type]
    images = getattr(data, cell.split)
    classifier, facts = classifier_of(cell, data.classnames, data.templates)
    options: dict[str, Any] = {"batch": BATCH[cell.data], "progress": False}
    clean = evaluate(classifier, images, ["clean"], sanity="off", **options)  # on all images
    rows, reasons = clean.rows, clean.reasons
    for attack in cell.attacks if cell.eps else ():
        out = FOLDER / "judged" / cell.name
        own = (attack, cell.eps, cell.images, out)
        more, doubts = _attacked(classifier, images, *own, **options)
        rows, reasons = [*rows, *more], [*reasons, *doubts]
    return {
        "name": cell.name,
        **dataclasses.asdict(cell),
        "label": cell.label,
        "machine": machine(),
        "weights": clean.models["model"]["weights"],
        **facts,
        "rows": [{k: row[k] for k in KEPT if k in row} for row in rows],
        "reasons": reasons,
    }


def _attacked(
    classifier: CLIPClassifier,
    images: ImageDataset,
    attack: str,
    radii: Sequence[str],
    limit: int,
    out: Path,
    **options: Any,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows of an attack at each radius, and reasons not to trust them."""
    if attack in STRONG:
        return from_the_largest(classifier, images, attack, radii, limit, out, **options)
    options |= {"limit": limit, "out": out / attack, "resume": True}
    found = evaluate(classifier, images, attack, radii, **options)
    return found.rows[1:], found.reasons


def measure(
    study: Study = "shapes",
    share: int = 0,
    shares: int = 1,
    part: str | None = None,
    model: str | None = None,
    method: str | None = None,
) -> None:
    """Run all cells without a result, or this process's share, one part, one model, one method.

    Runs on one thread: two processes with one thread each are faster than one with two threads.
    """
    torch.set_num_threads(1)
    cells, result = STUDIES[study]
    known = _recorded(result)
    for cell in cells():
        file = FOLDER / "cells" / f"{cell.name}.json"
        mine = int(hashlib.sha256(json.dumps(cell.tuning).encode()).hexdigest(), 16) % shares
        given = ((part, cell.part), (model, cell.model), (method, cell.method))
        wanted = all(one in (None, own) for one, own in given)
        if file.exists() or cell.name in known or mine != share or not wanted:
            continue
        row = judge(cell)
        write_json(file, row)
        shown = {
            f"{r['attack']} {255 * r['eps']:g}": round(100 * r["accuracy"], 1) for r in row["rows"]
        }
        print(
            cell.part, cell.model, cell.method, cell.seed, cell.test, cell.label, shown, flush=True
        )


def rows_of(path: Path = RESULT) -> list[dict[str, Any]]:
    """Return the rows of a result file."""
    return list(json.loads(path.read_text("utf-8"))["cells"])


def _recorded(path: Path) -> dict[str, Any]:
    """Return the result file's rows by cell name; delete the file to measure everything again."""
    return {row["name"]: row for row in rows_of(path)} if path.exists() else {}


def collect(study: Study = "shapes") -> None:
    """Add the finished cells to the result file of the study."""
    cells, result = STUDIES[study]
    rows = _recorded(result)
    for cell in cells():
        file = FOLDER / "cells" / f"{cell.name}.json"
        if file.exists():
            rows[cell.name] = {"name": cell.name, **json.loads(file.read_text("utf-8"))}
    write_json(result, {"cells": [rows[c.name] for c in cells() if c.name in rows]})
    print(f"written: {result}")
