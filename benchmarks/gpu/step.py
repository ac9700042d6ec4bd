"""The tuning step at NAP's published size on a GPU, in every variant."""

import time
from collections.abc import Callable, Collection
from typing import Any

import torch

from fastprompt import FrozenCLIP

from ..common.dry_run import DRY_RUN
from ..common.gpu_timing import DEVICE, event_turns, peak_bytes, profiled, tf32, under_tf32
from ..common.models import class_names, random_clip
from ..common.notes import note
from ..common.timing import RungsDifferError, gate
from ..common.tuner_steps import NAMES, TunerStep, agreement, random_images, tuner_steps
from .attack import make_attacks
from .smoke import captured

N_CTX = 16
FLOAT32 = ("eager", "eager-hoisted", "fastprompt")
FP32: dict[str, Any] = {"precision": "fp32", "compile": False}
COMPILED: dict[str, Any] = {"precision": "bf16", "compile": True}
FASTEST = "fastprompt, bf16, compiled"
# name of the result: implementation, settings, whether TF32 is allowed; the fastest first, so that
# a run that is stopped has measured the most
VARIANTS: dict[str, tuple[str, dict[str, Any], bool]] = {
    FASTEST: ("fastprompt", COMPILED, False),
    "fastprompt, bf16": ("fastprompt", {"precision": "bf16", "compile": False}, False),
    "eager-careful": ("eager-careful", {}, True),
    "fastprompt": ("fastprompt", FP32, False),
    "eager, TF32": ("eager", {}, True),
    "eager-hoisted": ("eager-hoisted", {}, False),
    "eager": ("eager", {}, False),
}
ALONE: dict[str, Any] = {"rounds": 5, "warmup": 1}
ALONE_ONCE: dict[str, Any] = {"rounds": 1, "warmup": 0, "backlog": 1}
SLOW = ("eager, TF32", "eager-hoisted", "eager")  # a second and more


def gate_small(clip: FrozenCLIP) -> dict[str, Any]:
    """Compare losses and gradients on a few classes.

    The float32 implementations should agree; bfloat16's differences from them are only reported.
    A difference does not stop the measurement: in float32, it may be rounding that a refiner's ReLU
    amplifies. ``agree`` marks the result.
    """
    data = random_images(4, clip.image_size, len(NAMES))

    def made(rung: str, **settings: Any) -> TunerStep:
        return tuner_steps((rung,), "nap", clip, NAMES, data, **settings)[rung]

    with tf32(False):
        steps = {rung: made(rung, **_settings(rung)) for rung in FLOAT32}
        results = agreement(steps)
        careful = {"eager-careful": made("eager-careful")}
        fast = {"fastprompt, bf16": made("fastprompt", precision="bf16", compile=False)}
        low = agreement({"eager": steps["eager"], **careful, **fast})
    exact, shown = compared(results), compared(low, limit=float("inf"))
    return {"agree": "wrong" not in exact, "float32": exact, "bfloat16": shown}


def compared(results: Any, **options: Any) -> dict[str, Any]:
    """Return the differences from the baseline, or an entry ``wrong`` that says what is wrong."""
    try:
        return gate(results, **options)
    except RungsDifferError as error:
        return {"wrong": str(error)}


def _settings(rung: str) -> dict[str, Any]:
    return FP32 if rung == "fastprompt" else {}


def make_step(
    variant: str, name: str, classes: int, batch: int, steps: int, clip: FrozenCLIP | None = None
) -> tuple[TunerStep, Callable[[], object]]:
    """Return NAP's step in a variant, and a function that runs it."""
    clip = clip or random_clip(name).to(DEVICE)
    names, data = class_names(classes), random_images(batch, clip.image_size, classes)
    rung, settings, allowed = VARIANTS[variant]
    step = TunerStep(rung, "nap", clip, names, data, n_ctx=N_CTX, steps=steps, **settings)
    return step, under_tf32(allowed, step)


def tuning_step(
    name: str = "ViT-B-16",
    classes: int = 1000,
    batch: int = 32,
    steps: int = 5,
    once: Collection[str] = (),
) -> dict[str, Any]:
    """Measure NAP's step at its published size in every variant; failures are only recorded.

    Each variant is timed alone as soon as it runs, the first also profiled. Then all run
    interleaved, and at the end their results are compared.

    Args:
        once: slow variants that are timed once.
    """
    clip = random_clip(name).to(DEVICE)
    out: dict[str, Any] = {"classes": classes, "batch": batch, "steps": steps}
    made: dict[str, TunerStep] = {}
    runs: dict[str, Callable[[], object]] = {}
    for variant in VARIANTS:
        try:
            step, run = make_step(variant, name, classes, batch, steps, clip)
            run()  # may run out of memory or fail to compile: the others still run
            alone = event_turns({"": run}, **(ALONE_ONCE if variant in once else ALONE))
        except Exception as error:
            if DRY_RUN:  # which is there to find it
                raise
            out[f"{variant}: failed"] = str(error)[-2000:]
            note(f"{variant}: failed", out[f"{variant}: failed"])
        else:
            made[variant], runs[variant] = step, run
            found = {**alone[""].as_dict(), "captured": captured(step.tuner._attack)}
            note(f"{variant}: alone", found)
            if variant == FASTEST:
                note(f"{variant}: profile", profiled(run))
        torch.cuda.empty_cache()
    for variant, timing in event_turns(runs, 5, warmup=0, once=once).items():
        out[variant] = timing.as_dict() | {"captured": captured(made[variant].tuner._attack)}
        note(variant, out[variant])
    try:
        out["differences"] = gate_small(clip)
    except RuntimeError as error:  # the times are worth more than the comparison
        out["differences"] = {"agree": False, "failed": str(error)[-2000:]}
    note("differences", out["differences"])
    for variant, step in made.items():
        # a replay's memory is in the graph's pool and not counted
        step.without_graph()
        out[variant]["peak_bytes"] = peak_bytes(runs[variant])
    return out


def fill_caches(
    name: str = "ViT-B-16",
    classes: int = 1000,
    batch: int = 32,
    steps: int = 5,
    attacked: int = 256,
) -> dict[str, Any]:
    """Compile the step's fastest variant and the large batch's attack, for the tasks after it."""
    began = time.perf_counter()
    step, run = make_step(FASTEST, name, classes, batch, steps)
    run()
    out: dict[str, Any] = {"step": time.perf_counter() - began}
    note("step", out | {"captured": captured(step.tuner._attack)})
    next(make_attacks(attacked, 1, min(classes, 100)))
    out["attack"] = time.perf_counter() - began - out["step"]
    return out
