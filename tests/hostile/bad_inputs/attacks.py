"""Attacks on classifiers and on image encoders."""

from typing import Any

import torch

from fastprompt import APGD, PGD, AutoAttack, OnlinePGD
from fastprompt.attacks import FAB, FeaturePGD, Square
from fastprompt.attacks.base import Attack

from .rows import CHOICES, COUNTS, DISTANCES, FLAGS, NAN, SEEDS, World, each, row

_COUNTS = {
    PGD: ("steps", "restarts", "samples", "batch"),
    APGD: ("steps", "restarts", "targets", "samples", "batch"),
    FAB: ("steps", "targets", "batch"),
    Square: ("queries", "batch"),
    AutoAttack: ("batch",),
    FeaturePGD: ("steps",),
}
_FLAGS = {PGD: ("random_start", "targeted", "stop"), APGD: ("stop",)}


def _made(kind: type, name: str) -> Any:
    return lambda w, value: kind(w.model, **{name: value})


ROWS = [
    r
    for kind, names in _COUNTS.items()
    for name in names
    for r in each(kind.__name__, name, _made(kind, name), COUNTS)
]
for kind, names in _FLAGS.items():
    for name in names:
        ROWS += each(kind.__name__, name, _made(kind, name), FLAGS)
for kind in (PGD, APGD, FAB, Square, AutoAttack, FeaturePGD):
    ROWS += each(kind.__name__, "eps", _made(kind, "eps"), DISTANCES)
for kind in (PGD, FeaturePGD):
    ROWS += each(kind.__name__, "alpha", _made(kind, "alpha"), DISTANCES)
for kind in (PGD, APGD, Square, AutoAttack, FeaturePGD):
    ROWS += each(kind.__name__, "seed", _made(kind, "seed"), SEEDS)
ROWS += each("PGD", "reduction", _made(PGD, "reduction"), CHOICES, "'mean'")
ROWS += each("APGD", "loss", _made(APGD, "loss"), CHOICES, "'dlr'")
ROWS += each("FeaturePGD", "start", _made(FeaturePGD, "start"), CHOICES, "'two-sided'")
ROWS += each("FeaturePGD", "clamp", _made(FeaturePGD, "clamp"), CHOICES, "'always'")


def _online(w: World, **options: Any) -> OnlinePGD:
    class Attackable:
        attack_loss = attack_reads = engine = None

    return OnlinePGD(Attackable(), **options)  # type: ignore[arg-type]


for name, values in (
    ("steps", COUNTS),
    ("eps", DISTANCES),
    ("alpha", DISTANCES),
    ("seed", SEEDS),
    ("random_start", FLAGS),
    ("clamp", CHOICES),
    ("attack_loss", CHOICES),
):
    ROWS += each("OnlinePGD", name, lambda w, v, name=name: _online(w, **{name: v}), values)
ROWS += [
    row("OnlinePGD-model-plain", lambda w: OnlinePGD(w.model), "model", "PromptedCLIP", "PGD"),
    row("PGD-model-none", lambda w: PGD(None), "model", "callable"),
    row("APGD-model-string", lambda w: APGD("resnet"), "model", "callable"),
    row("FeaturePGD-encode-none", lambda w: FeaturePGD(None), "encode", "callable"),
    row("PGD-loss-name", lambda w: PGD(w.model, loss="ce"), "loss", "callable"),
    row(
        "PGD-restarts-without-random-start",
        lambda w: PGD(w.model, restarts=2, random_start=False),
        "restarts",
        "random_start=True",
    ),
]


# ---- the images that an attack is called with --------------------------------------------------

_IMAGES = {
    "none": (lambda w: None, "tensor"),
    "a list": (lambda w: [[0.1]], "tensor"),
    "three dimensions": (lambda w: w.images[0], "[B, C, H, W]"),
    "bytes": (lambda w: (w.images * 255).byte(), "divide by 255"),
    "half": (lambda w: w.images.half(), ".float()"),
    "above 1": (lambda w: w.images * 255, "[0, 1]"),
    "below 0": (lambda w: w.images - 1, "[0, 1]"),
    "NaN": (lambda w: w.images * NAN, "[0, 1]"),
}
_LABELS = {
    "none": (lambda w: None, "tensor"),
    "a list": (lambda w: [0, 1], "tensor"),
    "floats": (lambda w: w.labels + 0.5, "integer"),
    "bools": (lambda w: w.labels > 0, "integer"),
    "one too few": (lambda w: w.labels[:1], "one label per image"),
    "two dimensions": (lambda w: w.labels[:, None], "one label per image"),
    "negative": (lambda w: w.labels - 1, "at least 0"),
}


def _attacks(w: World) -> list[Attack]:
    return [PGD(w.model, steps=1), APGD(w.model, steps=1), AutoAttack(w.model)]


for number, kind in enumerate((PGD, APGD, AutoAttack)):
    for what, (images, word) in _IMAGES.items():
        ROWS.append(
            row(
                f"{kind.__name__}-images-{what}",
                lambda w, n=number, images=images: _attacks(w)[n](images(w), w.labels),
                "images",
                word,
            )
        )
    for what, (labels, word) in _LABELS.items():
        ROWS.append(
            row(
                f"{kind.__name__}-labels-{what}",
                lambda w, n=number, labels=labels: _attacks(w)[n].run(w.images, labels(w)),
                "labels",
                word,
            )
        )
for what, (images, word) in _IMAGES.items():
    ROWS.append(
        row(
            f"FeaturePGD-images-{what}",
            lambda w, images=images: FeaturePGD(w.model, steps=1).run(images(w)),
            "images",
            word,
        )
    )
ROWS += [
    row(
        "PGD-indices-floats",
        lambda w: PGD(w.model).run(w.images, w.labels, indices=w.labels + 0.5),
        "indices",
        "integer",
    ),
    row(
        "PGD-indices-one-too-few",
        lambda w: PGD(w.model).run(w.images, w.labels, indices=w.labels[:1]),
        "indices",
    ),
    row(
        "FeaturePGD-indices-list",
        lambda w: FeaturePGD(w.model).run(w.images, indices=[0, 1]),
        "indices",
    ),
    row(
        "PGD-labels-outside-the-logits",
        lambda w: PGD(w.model, steps=1).run(w.images, torch.tensor([0, 3])),
        "labels",
        "3",
    ),
    row(
        "APGD-labels-outside-the-logits",
        lambda w: APGD(w.model, steps=1).run(w.images, torch.tensor([0, 3])),
        "labels",
        "3",
    ),
]
