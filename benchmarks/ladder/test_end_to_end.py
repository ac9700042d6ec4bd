"""End-to-end times: an epoch of tuning on the built-in images, an evaluation by AutoAttack."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastprompt import NAPTuner, evaluate, load_clip, load_data
from fastprompt.data import ImageTensors

from ..accuracy.autoattack import peer as standard_four
from ..common.clips import low_dtypes
from ..common.sizes import DEVICE, SIZE, SMALL
from ..common.timing import RungsDifferError
from .group import Group, Spec, ladder, replay

FAST = "fastprompt"
ENGINES = {"eager": "reference", FAST: "fast"}
BOTH = tuple(ENGINES)
OTHERS = ("eager-hoisted", "eager-careful", "compiled")
TWO_ENGINES = dict.fromkeys(OTHERS, "a tuner has two engines; see step/ for the others")
FIXED_TEXT = dict.fromkeys(OTHERS, "a classifier's text features are fixed: the same as eager")
EPS = 4 / 255
OTHER_VALUES = "it has fewer steps than the standard: its attacks are timed with the standard's"


def _epoch(rung: str, clip: Any, data: Any, **settings: Any) -> NAPTuner:
    tuner = NAPTuner(clip, data.classnames, engine=ENGINES[rung], epochs=1, **settings)
    return tuner.fit(data.train, progress=False)


def _tuned_in_float64(rung: str, data: Any) -> dict[str, Tensor]:
    """Return the prompts' change after three steps; in float64 rounding flips no sign."""
    clip = load_clip("tiny-shapes").double()
    few = ImageTensors(data.train.images[:6], data.train.labels[:6], data.classnames)
    tuner = NAPTuner(clip, data.classnames, engine=ENGINES[rung], epochs=1, batch=2, steps=1)
    start = {name: value.clone() for name, value in tuner.prompts.state_dict().items()}
    tuned = tuner.fit(few, progress=False).prompts.state_dict()
    moved = {name: tuned[name] - value for name, value in start.items()}
    return {name: step for name, step in moved.items() if step.any()}


def epoch(shots: int, batch: int) -> Group:
    """Build the group of NAP on shapes, including setup and reading images."""
    data, clip = load_data("shapes", shots=shots), load_clip("tiny-shapes").to(DEVICE)
    results = {rung: _tuned_in_float64(rung, data) for rung in BOTH}
    runs = {rung: partial(_epoch, rung, clip, data, batch=batch) for rung in BOTH}
    size = {
        "model": "tiny-shapes",
        "classes": len(data.classnames),
        "images": len(data.train),
        "batch": batch,
    }
    # optimizer and reading have no matrix products: FLOPs are not counted
    return Group(
        runs,
        results,
        rounds=2,
        warmup=0,
        tolerance=1e-8,
        dtypes=low_dtypes(),
        flops=lambda _: 0,
        size=size,
    )


class Evaluation:
    """AutoAttack (standard) on the zero-shot classifier."""

    def __init__(
        self, rung: str, images: Tensor, labels: Tensor, data: Any, engine: str = "fast"
    ) -> None:
        clip = load_clip("tiny-shapes-robust").to(DEVICE)
        self.model = clip.zero_shot(data.classnames, data.templates, engine=engine)
        self.rung, self.labels = rung, labels
        self.images, self.bytes = images.float() / 255, images
        self.peer = standard_four(self.model, EPS, seed=0)

    def __call__(self) -> None:
        """Attack, and store the number of images still classified correctly in ``standing``."""
        self.standing = self._standing()

    def _standing(self) -> int:
        if self.rung == FAST:
            chosen = ImageTensors(self.bytes, self.labels)
            options: dict[str, Any] = {"seed": 0, "sanity": "off", "progress": False}
            options["batch"] = len(self.labels)
            found = evaluate(self.model, chosen, ["autoattack"], EPS, **options)
            return int(found.row("model", "autoattack", EPS)["correct"])
        adv = self.peer(self.images, self.labels)
        return int((self.model(adv).argmax(1) == self.labels).sum())

    def results(self) -> dict[str, Tensor]:
        """Return the logits: all implementations attack the same model."""
        with torch.no_grad():
            return {"logits": self.model(self.images)}


def autoattack(n: int, engines: dict[str, str]) -> Group:
    """Compare `evaluate` with torchattacks' attacks at the standard's settings, in one batch.

    Args:
        engines: of each implementation's classifier; the first implementation is the baseline.
    """
    baseline, fast = engines
    data = load_data("shapes", shots=1)
    images, labels = (x[:n].to(DEVICE) for x in (data.test.images, data.test.labels))
    made = {rung: Evaluation(rung, images, labels, data, e) for rung, e in engines.items()}
    results = {rung: one.results() for rung, one in made.items()}
    size = {"model": "tiny-shapes-robust", "classes": 80, "images": n, "eps": "4/255"}

    def check() -> None:
        standing = {rung: one.standing for rung, one in made.items()}
        if standing[fast] > standing[baseline] + 1:
            raise RungsDifferError(f"fastprompt is weaker: of {n} images survive {standing}")

    return Group(
        made,
        results,
        rounds=1,
        warmup=0,
        check=check,
        baseline=baseline,
        flops=lambda _: 0,
        size=size,
    )


def specs() -> list[Spec]:
    """Return the groups; on two cores with few images."""
    shots, n = (1, 8) if SIZE == SMALL else (16, 500)
    return [
        Spec(
            f"end-to-end/epoch-nap/shapes-{shots}-shot",
            partial(epoch, shots, 32),
            BOTH,
            TWO_ENGINES,
        ),
        Spec(f"end-to-end/autoattack/n{n}", partial(autoattack, n, ENGINES), BOTH, FIXED_TEXT),
        # both attack one classifier on the fast engine
        Spec(
            f"peers/autoattack/n{n}",
            partial(autoattack, n, {"torchattacks": "fast", FAST: "fast"}),
            ("torchattacks", FAST),
            {"torchattacks.AutoAttack": OTHER_VALUES},
        ),
    ]


@ladder(specs())
def test_end_to_end(benchmark, spec, rung):
    replay(benchmark, spec, rung)
