"""Sweeps of `benchmarks.growth`: sizes, tuning steps, and the inputs of the FLOP formula."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastprompt import FrozenCLIP

from ..common.machine import peak_memory
from ..common.models import class_names, shared_clip
from ..common.timing import EXACT, gate
from ..common.tuner_steps import TunerStep, agreement, random_images, tuner_steps
from .flop_model import Sizes

RUNGS = ("eager", "fastprompt")
FEW = 5  # classes in the equality check


@dataclass(frozen=True)
class Point:
    """A step's settings; ``n_prompts`` applies to AMPT, ``depth`` to NAP."""

    method: str = "nap"
    model: str = "ViT-B-32"
    classes: int = 10
    batch: int = 2
    steps: int = 1
    n_ctx: int = 16
    depth: int = 12
    n_prompts: int = 1

    def settings(self) -> dict[str, Any]:
        """Return the tuner's settings, which override the presets of bundled models."""
        shared = {"steps": self.steps, "n_ctx": self.n_ctx, "ctx_init": None}
        if self.method == "ampt":
            return {**shared, "n_prompts": self.n_prompts, "clean_share": 0.0}
        return {**shared, "depth": self.depth, "consistency": "cosine"}


@dataclass(frozen=True)
class Sweep:
    """A sweep of one size with the others fixed.

    Attributes:
        name: the size that varies, a field of `Point`.
        values: of this size, ascending.
        base: the other settings.
    """

    name: str
    values: tuple[int, ...]
    base: Point

    def points(self) -> dict[int, Point]:
        """Return the points by the size that varies."""
        change: Any = dataclasses.replace
        return {n: change(self.base, **{self.name: n}) for n in self.values}

    def fixed(self) -> dict[str, Any]:
        """Return the fixed settings."""
        idle = {"depth"} if self.base.method == "ampt" else {"n_prompts"}
        every = dataclasses.asdict(self.base)
        return {k: v for k, v in every.items() if k not in idle | {self.name}}


_AMPT = Point(method="ampt", classes=25, n_ctx=4)
SWEEPS = (
    Sweep("classes", (10, 30, 100, 1000, 21_000), Point(batch=4, steps=3)),
    Sweep("n_prompts", (1, 4, 8, 32), _AMPT),
    Sweep("batch", (8, 64, 512), Point(model="tiny-shapes", depth=4)),
    Sweep("depth", (1, 6, 12), Point()),
    Sweep("steps", (1, 3, 10), Point()),
)
# small sweeps on the bundled model: all of them take seconds
QUICK = (
    Sweep("classes", (2, 6, 18), Point(model="tiny-shapes", depth=4)),
    Sweep("n_prompts", (1, 2), dataclasses.replace(_AMPT, model="tiny-shapes", classes=3)),
    Sweep("batch", (1, 2), Point(model="tiny-shapes", classes=2, depth=4)),
    Sweep("depth", (1, 4), Point(model="tiny-shapes", classes=2)),
    Sweep("steps", (1, 2), Point(model="tiny-shapes", classes=2, depth=4)),
)


def make_steps(
    rungs: Sequence[str], point: Point, clip: FrozenCLIP | None = None
) -> dict[str, TunerStep]:
    """Create a step for each implementation with the same prompts; ``clip`` overrides the model."""
    clip = clip or shared_clip(point.model, "cpu")
    images = random_images(point.batch, clip.image_size, point.classes)
    names = class_names(point.classes)
    return tuner_steps(rungs, point.method, clip, names, images, **point.settings())


def differences(point: Point) -> dict[str, dict[str, float]]:
    """Return the differences of `timing.gate` in float64, on few classes and two images.

    In float32 rounding can put a refiner's ReLU on different sides of zero in two implementations,
    which is not necessarily an error of the fast one.
    """
    few = min(point.classes, FEW)
    small = dataclasses.replace(point, classes=few, batch=2, steps=1)
    double = shared_clip(point.model, "cpu", double=True)
    return gate(agreement(make_steps(RUNGS, small, double)), limit=EXACT)


def peak_bytes(rung: str, point: Point, threads: int) -> int:
    """Return a step's peak memory in bytes, above weights and towers; call it in a fresh process.

    Freed memory is returned to the system there, so that the peak counts only memory in use at
    once.
    """
    torch.set_num_threads(threads)
    tiny = dataclasses.replace(point, classes=2, batch=1, steps=1)
    make_steps([rung], tiny)[rung]()  # libraries allocate their buffers in the first call
    return peak_memory(make_steps([rung], point)[rung])


def sizes(step: TunerStep) -> Sizes:
    """Return a step's sizes for the formula.

    Raises:
        ValueError: the formula does not cover the implementation or the kind of model.
    """
    tuner, clip = step.tuner, step.tuner.clip
    config: Any = tuner.config
    prompts: Any = tuner.prompts
    if step.rung not in RUNGS:
        raise ValueError(f"rung must be one of {RUNGS}, got {step.rung!r}")
    visual: Any = clip.model.visual
    shared = getattr(tuner.model.text, "shared", None)
    if step.rung == "fastprompt" and shared is None:
        raise ValueError(
            f"{clip.name} computes complete prompts, since it has no causal text mask or few "
            "classes; the formula needs a shared prefix"
        )
    if visual.pool_type != "tok":
        raise ValueError(f"{clip.name} pools by {visual.pool_type!r}; the formula needs 'tok'")
    nap = tuner.method == "nap"
    patch = visual.conv1.kernel_size
    return Sizes(
        eager=step.rung == "eager",
        classes=len(tuner.classnames),
        batch=len(step.order),
        steps=config.steps,
        prompts=1 if nap else config.n_prompts,
        n_ctx=config.n_ctx,
        depth=len(prompts.tokens) if nap else 0,
        passes=2 if nap or config.clean_share else 1,
        keeps_layers=nap and config.consistency != "none",
        refined=nap and config.refiners,
        router=0 if nap else prompts.head.router.first.out_features,
        features=clip.embed_dim,
        image_width=visual.conv1.out_channels,
        image_layers=len(visual.transformer.resblocks),
        patches=(clip.image_size // patch[0]) * (clip.image_size // patch[1]),
        pixels=3 * patch[0] * patch[1],
        **_text_sizes(tuner.model.text),
    )


def _text_sizes(text: Any) -> dict[str, Any]:
    packed = getattr(text, "chunks", ())
    return {
        "text_width": text.parts.width,
        "text_layers": text.parts.layers,
        "text_length": text.layout.length,
        "prefix": getattr(text, "prefix", 0),
        "suffixes": sum(len(chunk.ids) for chunk in packed),
        "chunked": len(packed) > 1,
    }
