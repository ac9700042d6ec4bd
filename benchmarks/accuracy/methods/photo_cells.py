"""The runs of the comparison on photographs, with the bundled models of photographs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastprompt.data.corruptions import NAMES as CORRUPTED
from fastprompt.data.photos import MODELS

from .cells import METHODS as ON_SHAPES
from .cells import SEEDS, Cell

METHODS = (ON_SHAPES[0], "coop", *ON_SHAPES[1:])
EPS = ("1/255", "2/255")
ATTACKS = ("pgd-100", "autoattack")
SHOTS = {"apt": (1, 4), "nap": (1, 4)}  # in addition to 16
_PHOTOS: dict[str, Any] = {"data": "photos", "test": "photos"}


def main_photo_cells() -> Iterator[Cell]:
    """Yield every method on both models, evaluated at two radii with both attacks."""
    for seed in SEEDS:
        for model in MODELS:
            for method in METHODS:
                if method == "zero-shot" and seed:
                    continue  # zero-shot does not depend on the seed
                yield Cell("main", model, method, seed, eps=EPS, attacks=ATTACKS, **_PHOTOS)


def _corrupted() -> Iterator[Cell]:
    """Yield the first seed's prompts, evaluated on corrupted photographs without an attack."""
    for model in MODELS:
        for method in METHODS:
            for test in CORRUPTED:
                yield Cell("corrupted", model, method, 0, eps=(), data="photos", test=test)


def _new() -> Iterator[Cell]:
    """Yield runs tuned on the first half of the classes, evaluated on each half."""
    for model in MODELS:
        for method in METHODS:
            for half in ("base", "new"):
                own: dict[str, Any] = {"test_classes": half, "classes": "base", **_PHOTOS}
                yield Cell("new", model, method, 0, eps=EPS[:1], **own)


def _shots() -> Iterator[Cell]:
    for method, shots in SHOTS.items():
        for model in MODELS:
            for n in shots:
                yield Cell("shots", model, method, 0, eps=EPS[:1], shots=n, **_PHOTOS)


def _claims() -> Iterator[Cell]:
    """Yield runs that test the papers' claims on the robust model, one changed setting each."""

    def cell(claim: str, method: str, seed: int, **changes: Any) -> Cell:
        own: dict[str, Any] = {"eps": EPS[:1], "changes": tuple(changes.items()), **_PHOTOS}
        return Cell(claim, MODELS[1], method, seed, **own)

    for seed in SEEDS:
        for k, tokens in ((4, 4), (1, 4), (1, 16)):
            yield cell("mixture", "ampt", seed, n_prompts=k, n_ctx=tokens)
        yield from (cell("refiners", "nap", seed, refiners=r) for r in (True, False))
        yield from (cell("layers", "nap", seed, consistency=c) for c in ("cosine", "none"))
        yield from (cell("balance", "capt", seed, **changes) for changes in ({}, {"lam": 0.0}))


def photo_cells() -> list[Cell]:
    """Return every cell, those of the main table first."""
    cells = [*main_photo_cells(), *_corrupted(), *_new(), *_shots(), *_claims()]
    return list(dict.fromkeys(cells))
