"""The runs of the comparison on photographs, with the bundled models of photographs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from fastprompt.data.corruptions import NAMES as CORRUPTED
from fastprompt.data.photos import MODELS
from fastprompt.tuning.attack_loss import AttackLoss
from fastprompt.tuning.online import Objective

from .cells import METHODS as ON_SHAPES
from .cells import SEEDS, Cell

METHODS = (ON_SHAPES[0], "coop", *ON_SHAPES[1:])
EPS = ("1/255", "2/255")
SHOTS = {"apt": (1, 4), "nap": (1, 4)}  # in addition to 16
APGD, AUTOATTACK = ("apgd-ce", "apgd-t"), ("autoattack",)
WITH_AUTOATTACK = ("zero-shot", "nap")  # the others' first seeds are judged by APGD alone
# further settings of each method with TRADES, which needs clean images
WITH_TRADES: Mapping[str, Mapping[str, Any]] = {
    "nap": {},
    "ampt": {"clean_share": 0.5},
    "capt": {"ce": "clean"},
}
Pairs = Sequence[tuple[Objective, AttackLoss]]
PUBLISHED = ("ce", "ce")
_SOME: Pairs = (("ce", "ce"), ("ce", "margin"), ("ce", "mixed"), ("trades", "kl"))
# compared pairs of objective and attack loss; each takes minutes
PAIRS: Mapping[str, Pairs] = {
    "nap": (*(("ce", loss) for loss in get_args(AttackLoss)), ("trades", "ce"), ("trades", "kl")),
    "ampt": _SOME,
    "capt": _SOME,
}
# NAP's preset, without its loss, until a search replaced it; tuning takes half the time of today's
EARLIER_NAP: Mapping[str, Any] = {
    "eps": "2/255",
    "epochs": 3,
    "adv_share": 0.5,
    "text_refiners": False,
}
_PHOTOS: dict[str, Any] = {"data": "photos", "test": "photos"}


def main_photo_cells() -> Iterator[Cell]:
    """Yield every method on both models, evaluated at two radii."""
    for seed in SEEDS:
        for model in MODELS:
            for method in METHODS:
                if method == "zero-shot" and seed:
                    continue  # zero-shot does not depend on the seed
                yield Cell("main", model, method, seed, eps=EPS, **_PHOTOS)


def strong_cells() -> Iterator[Cell]:
    """Yield the same prompts, judged by AutoAttack, or by its APGD parts alone."""
    for cell in main_photo_cells():
        if cell.method in WITH_AUTOATTACK or cell.seed == 0:
            attacks = AUTOATTACK if cell.method in WITH_AUTOATTACK else APGD
            yield replace(cell, part="strong", attacks=attacks)


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
    """Yield runs that test the papers' claims on the robust model, one changed part each.

    The other side of each claim is the preset, which is in the main table.
    """

    def cell(claim: str, method: str, seed: int, **changes: Any) -> Cell:
        own: dict[str, Any] = {"eps": EPS[:1], "changes": tuple(changes.items()), **_PHOTOS}
        return Cell(claim, MODELS[1], method, seed, **own)

    for seed in SEEDS:
        for tokens in (4, 32):  # of one prompt, or of all eight
            yield cell("mixture", "ampt", seed, n_prompts=1, n_ctx=tokens)
        yield cell("refiners", "nap", seed, refiners=False, text_refiners=False)
        yield cell("refiners", "nap", seed, text_refiners=False)
        yield cell("layers", "nap", seed, consistency="cosine")
        yield cell("balance", "capt", seed, lam=0.0)


def losses_cells() -> Iterator[Cell]:
    """Yield zero-shot, then the pairs of objective and attack loss of the online methods.

    They are judged on validation images, as one of the pairs is selected.
    """
    judged: dict[str, Any] = {"eps": EPS[:1], "attacks": APGD, "split": "val", "images": 128}
    for model in MODELS:
        yield Cell("losses", model, METHODS[0], 0, **judged, **_PHOTOS)
        for method, pairs in PAIRS.items():
            earlier = EARLIER_NAP if method == "nap" else {}
            for objective, loss in pairs:
                more = WITH_TRADES[method] if objective == "trades" else {}
                changes = {**earlier, "objective": objective, "attack_loss": loss, **more}
                given = {"changes": tuple(changes.items()), **judged, **_PHOTOS}
                yield Cell("losses", model, method, 0, **given)


def photo_cells() -> list[Cell]:
    """Return every cell, those of the main table first."""
    cells = [
        *main_photo_cells(),
        *strong_cells(),
        *_corrupted(),
        *_new(),
        *_shots(),
        *_claims(),
        *losses_cells(),
    ]
    return list(dict.fromkeys(cells))
