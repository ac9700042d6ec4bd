"""The runs of the comparison: one `Cell` for each."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

MODELS = ("tiny-shapes", "tiny-shapes-robust")
METHODS = ("zero-shot", "advpt", "apt", "ampt", "capt", "nap")
BASE_EPS = "2/255"  # default of the preset search, and radius of the smaller tables
TEST_EPS = ("1/255", "2/255", "4/255")
SEEDS = (0, 1, 2)
IMAGES = 400
SHIFTED = ("shapes-outline", "shapes-recolored", "shapes-crowded")
PRECISIONS = ("fp32", "auto")  # of the tuning, compared
# radii at which a part of the images withstands the attack
PRECISION_EPS = {"tiny-shapes": "1/255", "tiny-shapes-robust": BASE_EPS}
# of fields that earlier cells did not have: not part of their names
_LATER: dict[str, Any] = {
    "data": "shapes",
    "shots": 16,
    "attacks": ("pgd-100",),
    "split": "test",
    "images": IMAGES,
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run: a bundled model's preset with changed settings.

    Attributes:
        part: the table that it is for, or the claim that is tested.
        model: bundled model.
        method: a tuner's name, or ``"zero-shot"``.
        seed: of the few-shot sample and of the tuning.
        test, test_classes: data set and classes of the evaluation.
        eps: radii of the evaluation.
        classes: of the tuning.
        changes: settings that differ from the preset.
        data, shots: data set of the tuning, and its training images per class.
        attacks: of the evaluation.
        split: images of the evaluation, ``"test"`` or ``"val"``.
        images: number of images that are attacked, drawn by seed 0, the same in all cells.
    """

    part: str
    model: str
    method: str
    seed: int
    test: str = "shapes"
    test_classes: str = "all"
    eps: tuple[str, ...] = (BASE_EPS,)
    classes: str = "all"
    changes: tuple[tuple[str, Any], ...] = ()
    data: str = _LATER["data"]
    shots: int = _LATER["shots"]
    attacks: tuple[str, ...] = _LATER["attacks"]
    split: str = _LATER["split"]
    images: int = _LATER["images"]

    @property
    def label(self) -> str:
        """The changed settings as text."""
        return ", ".join(f"{k}={v}" for k, v in self.changes) or "preset"

    @property
    def name(self) -> str:
        """A readable, unique file name."""
        facts = dataclasses.asdict(self)
        own = {k: v for k, v in facts.items() if k not in _LATER or v != _LATER[k]}
        mark = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.part}-{self.model}-{self.method}-{self.seed}-{mark}"

    @property
    def tuning(self) -> tuple[Any, ...]:
        """Key of the tuned prompts: cells with equal keys share them."""
        later = [getattr(self, k) for k in ("data", "shots") if getattr(self, k) != _LATER[k]]
        return (self.model, self.method, self.seed, self.classes, self.changes, *later)


def cell_of(row: Mapping[str, Any]) -> Cell:
    """Return the cell of a row of the result file."""
    fields = {name: row[name] for name in Cell.__dataclass_fields__ if name in row}
    fields |= {name: tuple(fields[name]) for name in ("eps", "attacks") if name in fields}
    fields["changes"] = tuple((key, value) for key, value in fields["changes"])
    return Cell(**fields)


def main_cells() -> Iterator[Cell]:
    """Yield every method on both models, tuned at one radius and evaluated at three."""
    for seed in SEEDS:
        for model in MODELS:
            for method in METHODS:
                if method == "zero-shot" and seed:
                    continue  # zero-shot does not depend on the seed
                yield Cell("main", model, method, seed, eps=TEST_EPS)


def shift_cells() -> Iterator[Cell]:
    """Yield the first seed's prompts, evaluated on shifted images."""
    for model in MODELS:
        for method in METHODS:
            for test in SHIFTED:
                yield Cell("shift", model, method, 0, test=test)


def new_cells() -> Iterator[Cell]:
    """Yield runs tuned on the first half of the classes, evaluated on each half."""
    model = "tiny-shapes-robust"
    for method in METHODS:
        for half in ("base", "new"):
            yield Cell("new", model, method, 0, test_classes=half, classes="base")


def precision_cells() -> Iterator[Cell]:
    """Yield runs tuned in float32 and in ``precision="auto"``; everything else is equal."""
    for seed in SEEDS:
        for method in ("ampt", "capt", "nap"):
            for model in MODELS:
                for precision in PRECISIONS:
                    # half of NAP's epochs: they take most of the time
                    changes = {"precision": precision} | ({"epochs": 5} if method == "nap" else {})
                    given: Any = {"eps": (PRECISION_EPS[model],), "changes": tuple(changes.items())}
                    yield Cell("precision", model, method, seed, **given)


def claim_cells() -> Iterator[Cell]:
    """Yield runs that test the papers' claims on the robust model, one changed setting each."""

    def cell(claim: str, method: str, **changes: Any) -> Cell:
        return Cell(claim, "tiny-shapes-robust", method, 0, changes=tuple(changes.items()))

    for k in (1, 2, 4, 8, 16):  # 16 context tokens in total
        yield cell("mixture", "ampt", n_prompts=k, n_ctx=16 // k)
    yield from (cell("refiners", "nap", refiners=r) for r in (True, False))
    yield from (cell("layers", "nap", consistency=c) for c in ("cosine", "mse", "none"))
    yield from (cell("layers", "nap", schedule="linear", consistency=c) for c in ("cosine", "none"))
    yield from (cell("balance", "capt", balance=b) for b in ("confidence", "linear"))
    yield from (
        cell("balance", "capt", balance="constant", balance_value=a) for a in (0.0, 0.5, 1.0)
    )
    yield cell("balance", "capt", lam=0.0)
    yield from (cell("depth", "capt", lam=0.0, depth=d) for d in (1, 2, 4))
    yield cell("depth", "apt")


def all_cells() -> list[Cell]:
    """Return every cell, those of the main table first."""
    cells = [*main_cells(), *shift_cells(), *new_cells(), *precision_cells(), *claim_cells()]
    return list(dict.fromkeys(cells))
