"""Compares the search in a low precision with that in the model's own, on the same images.

python -m benchmarks.accuracy precision measure   # zero-shot and all tuned first seeds
python -m benchmarks.accuracy precision measure --methods '[zero-shot]' --images 50
python -m benchmarks.accuracy precision measure --emulated true   # without native bfloat16
python -m benchmarks.accuracy precision table
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from fastprompt import evaluate, load_data
from fastprompt._utils.devices import usable_device

from ..common.paths import TWO_CORES
from ..common.report import table, write
from .methods.cells import METHODS, MODELS, Cell, main_cells
from .methods.results_page import name_of
from .methods.run import classifier_of

RESULT = TWO_CORES / "search_precision.json"
# radii at which a part of the images stands
RADII = {"tiny-shapes": ("0.25/255", "0.5/255"), "tiny-shapes-robust": ("1/255", "2/255")}
ATTACKS = ("pgd-20", "apgd-ce")
MOST = 1 / 200  # share of the images that may stand in one of the two evaluations alone
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")


class Emulated(TorchDispatchMode):
    """Computes products of bfloat16 tensors in float32 and rounds them to bfloat16.

    Processors with bfloat16 units do the same; others take a hundred times longer for it.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").partition(".")[0]
        if name in _PRODUCTS and any(_low(value) for value in args):
            wide = tree_map_only(Tensor, lambda t: t.float() if _low(t) else t, args)
            return tree_map_only(Tensor, Tensor.bfloat16, func(*wide, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


def _low(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.bfloat16


def measure(
    models: Sequence[str] = MODELS,
    methods: Sequence[str] = METHODS,
    images: int = 200,
    precision: str = "bf16",
    attacks: Sequence[str] = ATTACKS,
    device: str = "cpu",
    emulated: bool = False,
    out: str = str(RESULT),
) -> None:
    """Evaluate the classifiers of both bundled models with both searches.

    The file is written after each classifier; those that it has, measured with the same settings,
    are not measured again. ``emulated`` is for a processor without native bfloat16: see `Emulated`.
    Its times say nothing.

    Raises:
        RuntimeError: the images that stand differ by more than 1 in 200.
    """
    about: dict[str, Any] = {"images": images, "precision": precision, "device": device}
    about |= {"emulated": emulated, "threads": torch.get_num_threads()}
    rows = _known(Path(out), about)
    done = {(row["model"], row["method"]) for row in rows}
    for cell in main_cells():
        known = cell.seed or (cell.model, cell.method) in done
        if cell.model in models and cell.method in methods and not known:
            with Emulated() if emulated else nullcontext():
                rows += _compare(cell, images, precision, attacks, device)
            write(Path(out), {**about, "rows": rows})
    show(out)
    if beyond := [row for row in rows if not held(row)]:
        raise RuntimeError(f"the images that stand differ by more than 1 in 200: {beyond}")


def _known(file: Path, about: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the file's rows, if it has the same settings."""
    found = json.loads(file.read_text("utf-8")) if file.exists() else {}
    same = all(found.get(key) == value for key, value in about.items())
    return list(found["rows"]) if same else []


def _compare(
    cell: Cell,
    images: int,
    precision: str,
    attacks: Sequence[str],
    device: str,
) -> list[dict[str, Any]]:
    data = load_data(cell.test)
    classifier, _ = classifier_of(cell, data.classnames, data.templates)
    classifier.to(usable_device(device))
    options: dict[str, Any] = {"limit": images, "sanity": "off", "batch": 100}
    own, low = (
        evaluate(
            classifier, data.test, attacks, RADII[cell.model], search_precision=search, **options
        )
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
