"""Compares the strength of PGD, APGD, FAB and Square with torchattacks at an equal budget.

python -m benchmarks.accuracy strength measure   # zero-shot and tuned classifiers, half an hour
python -m benchmarks.accuracy strength table
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastprompt import PGD, load_data
from fastprompt._utils.checks import parse_fraction
from fastprompt.attacks import APGD, FAB, Square

from ..common.paths import TWO_CORES
from ..common.report import table, write
from .methods.cells import main_cells
from .methods.results_page import name_of
from .methods.run import classifier_of

RESULT = TWO_CORES / "strength.json"
MODEL, METHODS = "tiny-shapes-robust", ("zero-shot", "ampt", "nap")
IMAGES, BATCH, EPS, SEEDS = 100, 50, "2/255", (0, 1, 2)
STEPS = {"pgd": 20, "apgd-ce": 50, "apgd-t": 20, "fab-t": 20, "square": 500}
UNITS = {"square": "queries"}
DETERMINISTIC = ("pgd", "fab-t")  # PGD without a random start, FAB without restarts
TARGETS = 9

Attack = Callable[[Tensor, Tensor], Tensor]


def _ours(model: nn.Module, name: str, eps: float, seed: int) -> Attack:
    steps = STEPS[name]
    if name == "pgd":
        return PGD(model, eps, eps / 4, steps, random_start=False, reduction="mean")
    if name == "apgd-ce":
        return APGD(model, eps, steps, seed=seed)
    if name == "fab-t":
        return FAB(model, eps, steps, targets=TARGETS)
    if name == "square":
        return Square(model, eps, steps, seed=seed)
    return APGD(model, eps, steps, loss="targeted-dlr", targets=TARGETS, seed=seed)


def _theirs(model: nn.Module, name: str, eps: float, seed: int) -> Attack:
    import torchattacks  # from the extra `peers`; printing the tables does not need it

    steps = STEPS[name]
    if name == "pgd":
        return torchattacks.PGD(model, eps, eps / 4, steps, random_start=False)
    if name == "apgd-ce":
        return torchattacks.APGD(model, eps=eps, steps=steps, loss="ce", seed=seed)
    if name == "fab-t":
        return torchattacks.FAB(
            model, eps=eps, steps=steps, multi_targeted=True, n_classes=TARGETS + 1
        )
    if name == "square":
        options = {"n_queries": steps, "resc_schedule": False}
        return torchattacks.Square(model, eps=eps, seed=seed, **options)
    return torchattacks.APGDT(model, eps=eps, steps=steps, n_classes=TARGETS + 1, seed=seed)


def _attack(attack: Attack, images: Tensor, labels: Tensor) -> Tensor:
    parts = zip(images.split(BATCH), labels.split(BATCH), strict=True)
    return torch.cat([attack(x, y).detach() for x, y in parts])


def _compare(model: nn.Module, name: str, images: Tensor, labels: Tensor) -> dict[str, Any]:
    eps = parse_fraction(EPS, "eps")
    seeds = SEEDS[:1] if name in DETERMINISTIC else SEEDS
    standing: dict[str, list[int]] = {"fastprompt": [], "torchattacks": []}
    for seed in seeds:
        pair = {
            side: _attack(make(model, name, eps, seed), images, labels)
            for side, make in (("fastprompt", _ours), ("torchattacks", _theirs))
        }
        for side, adv in pair.items():
            with torch.no_grad():
                standing[side].append(int((model(adv).argmax(1) == labels).sum()))
    row = {"attack": name, "steps": STEPS[name], **standing}
    return {**row, "equal_images": torch.equal(*pair.values())} if name == "pgd" else row


def measure() -> None:
    """Attack the correctly classified test images with both libraries, in one process."""
    rows = []
    for cell in main_cells():
        if cell.model != MODEL or cell.seed or cell.method not in METHODS:
            continue
        data = load_data(cell.test)
        model, _ = classifier_of(cell, data.classnames, data.templates)
        order = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))[:IMAGES]
        images, labels = data.test.images[order].float() / 255, data.test.labels[order]
        with torch.no_grad():
            right = model(images).argmax(1) == labels
        for name in STEPS:
            row = _compare(model, name, images[right], labels[right])
            rows.append({"method": cell.method, "attacked": int(right.sum()), **row})
            print(rows[-1], flush=True)
    about = {"clip": MODEL, "eps": EPS, "images": IMAGES, "targets": TARGETS, "seeds": list(SEEDS)}
    write(RESULT, {**about, "rows": rows})


def lines() -> list[list[str]]:
    """Return the numbers of images still classified correctly, for each seed."""
    found = [["", "attack", "attacked", "stand", "stand (torchattacks)"]]
    for row in json.loads(RESULT.read_text("utf-8"))["rows"]:
        sides = (", ".join(map(str, row[side])) for side in ("fastprompt", "torchattacks"))
        attack = f"{row['attack']}, {row['steps']} {UNITS.get(row['attack'], 'steps')}"
        found.append([name_of(row["method"]), attack, str(row["attacked"]), *sides])
    return found


def show() -> None:
    """Print the file's table."""
    print(table(lines()))
