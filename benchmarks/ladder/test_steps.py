"""A whole tuning step of each method, on every implementation, with few and many classes.

Few classes run on the bundled model, many on ViT-B-32. The equality check uses few classes and
images: in the timed dtype, and for the bundled model also in float64.
"""

from functools import partial
from typing import Any

from torch import Tensor

from ..common.clips import in_both_precisions, low_dtypes, step_by_step
from ..common.models import BUNDLED, class_names, shared_clip
from ..common.sizes import DEVICE, ON_GPU, SIZE, SMALL
from ..common.timing import EXACT, count_flops, count_without_values, gate
from ..common.tuner_steps import NAMES, TunerStep, agreement, random_images, tuner_steps
from .advpt_steps import PhaseOne, PhaseTwo
from .group import EAGER, Group, Spec, ladder, replay

ALL = ("eager", "eager-hoisted", "eager-careful", "compiled", "fastprompt")
BOTH = ("eager", "fastprompt")
UNCOMPILED = ("eager", "eager-hoisted", "eager-careful", "fastprompt")
COMPILING = {"compiled": "compiling a step takes minutes on a CPU; see towers/"}
# compiled code computes the same products; counting needs eager code
COUNTED = {"compiled": "eager-careful"}
NOTHING_TO_HOIST = {"eager-hoisted": "no attack uses text features: the same as eager"}
SEEN = "skipped to save time: see step/nap/c100 and step/ampt/c10-k4"
IN_NAP = dict.fromkeys(("eager-hoisted", "eager-careful"), SEEN)
NO_TEXT = "it runs no text encoder: nothing to hoist or to trim"
IMAGES_ALONE = dict.fromkeys(("eager-hoisted", "eager-careful"), NO_TEXT)
SLOW = ("eager", "eager-hoisted", "eager-careful")
STEPS = 3
ADV_CE = {"ce": "adv"}  # was CAPT's default when the committed steps were timed


def tuning(
    rungs: tuple[str, ...],
    method: str,
    model: str,
    classes: int,
    batch: int,
    steps: int = STEPS,
    rounds: int = 3,
    **settings: Any,
) -> Group:
    """Build the group of one step; the equality check uses two classes and one image."""
    clip = shared_clip(model, DEVICE)

    def agreeing(double: bool) -> dict[str, dict[str, Tensor]]:
        gated = shared_clip(model, DEVICE, double=double)
        few, one = NAMES[1:3], random_images(1, clip.image_size, 2)
        every = tuple(dict.fromkeys((EAGER, *rungs)))
        return agreement(tuner_steps(every, method, gated, few, one, steps=1, **settings))

    if ON_GPU or model in BUNDLED:  # where it is quick
        gate(agreeing(double=True), limit=EXACT)
    results = agreeing(double=False)
    data = random_images(batch, clip.image_size, classes)
    made = tuner_steps(rungs, method, clip, class_names(classes), data, steps=steps, **settings)
    size = {"model": model, "classes": classes, "batch": batch, "steps": steps, **settings}
    return Group(
        made,
        results,
        exact=partial(agreeing, double=True),
        dtypes=low_dtypes(),
        rounds=rounds,
        # slow groups have no warm-up: it would be a third of their time
        warmup=0 if rounds < 3 else 1,
        once=SLOW if rounds < 3 else (),
        baseline=rungs[0],
        inside=lambda rung, keep: made[rung].inside(keep),
        flops=lambda rung: _flops(made[COUNTED.get(rung, rung)], model),
        size=size,
    )


def _flops(step: TunerStep, model: str) -> int:
    """Count in a run where that is faster than on tensors without values."""
    return count_flops(step) if model in BUNDLED else step.flops()


def phase_two(
    rungs: tuple[str, ...], model: str, classes: int, batch: int, n_ctx: int, rounds: int = 2
) -> Group:
    """Build the group of AdvPT's step on embeddings."""
    clip = shared_clip(model, DEVICE)
    results = {rung: PhaseTwo(rung, clip, NAMES, n_ctx, 4)() for rung in rungs}
    made = {rung: PhaseTwo(rung, clip, class_names(classes), n_ctx, batch) for rung in rungs}
    size = {"model": model, "classes": classes, "batch": batch, "n_ctx": n_ctx}

    def flops(rung: str) -> int:
        return count_without_values(made["eager-careful" if rung == "compiled" else rung])

    once = SLOW if rounds < 3 else ()
    return Group(
        made,
        results,
        rounds=rounds,
        warmup=0,
        once=once,
        dtypes=low_dtypes(),
        inside=lambda rung, keep: step_by_step(made[rung].tuner.model, compiled=keep),
        flops=flops,
        size=size,
    )


def bank(rungs: tuple[str, ...], model: str, batch: int) -> Group:
    """Build the group of AdvPT's attack on the image encoder."""
    clip = shared_clip(model, DEVICE)
    made = {rung: PhaseOne(rung, clip, batch) for rung in rungs}
    results = {rung: one.results() for rung, one in made.items()}
    size = {"model": model, "images": batch, "steps": 10}

    def flops(rung: str) -> int:
        return made["eager" if rung == "compiled" else rung].flops()

    return Group(
        made,
        results,
        rounds=3,
        dtypes=low_dtypes(),
        inside=lambda rung, keep: step_by_step(made[rung].tuner.model, compiled=keep),
        flops=flops,
        size=size,
    )


def spec(name: str, build, rungs: tuple[str, ...], left_out=None, **settings) -> Spec:
    rungs = in_both_precisions(rungs)
    return Spec(name, partial(build, rungs, **settings), rungs, left_out or {})


def small() -> list[Spec]:
    """Return the groups for two CPU cores."""
    few = {"model": "tiny-shapes", "classes": 10, "batch": 8, "n_ctx": 4}
    many = {"model": "ViT-B-32", "classes": 100, "batch": 8, "n_ctx": 16, "rounds": 2}
    mixture = {**many, "classes": 25, "n_prompts": 4}
    text = ("eager", "eager-careful", "fastprompt")
    left_out = {**NOTHING_TO_HOIST, **COMPILING}
    alone = {**IMAGES_ALONE, **COMPILING}
    return [
        spec("step/nap/c10", tuning, UNCOMPILED, COMPILING, method="nap", **few),
        spec("step/capt/c10", tuning, UNCOMPILED, COMPILING, method="capt", **few, **ADV_CE),
        spec("step/ampt/c10-k4", tuning, UNCOMPILED, COMPILING, method="ampt", **few, n_prompts=4),
        spec("step/nap/c100", tuning, UNCOMPILED, COMPILING, method="nap", **many),
        spec("step/capt/c100", tuning, UNCOMPILED, COMPILING, method="capt", **many, **ADV_CE),
        spec("step/ampt/c25-k4", tuning, BOTH, {**COMPILING, **IN_NAP}, method="ampt", **mixture),
        spec("step/advpt-bank/b16", bank, BOTH, alone, model="tiny-shapes", batch=16),
        spec(
            "step/advpt-phase-2/c10",
            phase_two,
            text,
            left_out,
            model="tiny-shapes",
            classes=10,
            batch=32,
            n_ctx=4,
            rounds=5,
        ),
        spec(
            "step/advpt-phase-2/c100",
            phase_two,
            text,
            left_out,
            model="ViT-B-32",
            classes=100,
            batch=32,
            n_ctx=32,
        ),
    ]


def full() -> list[Spec]:
    """Return the groups for a GPU, at the published sizes."""
    few = {"model": "ViT-B-16", "classes": 10, "batch": 32, "n_ctx": 16, "steps": 5}
    many = {**few, "classes": 1000, "rounds": 3}
    text = ("eager", "eager-careful", "compiled", "fastprompt")
    phase = {"model": "ViT-B-16", "batch": 32, "n_ctx": 32, "rounds": 3}
    specs = [
        spec(f"step/{method}/c{size['classes']}", tuning, ALL, method=method, **size, **pinned)
        for method, pinned in (("nap", {}), ("capt", ADV_CE))
        for size in (few, many)
    ]
    mixtures = [{**few, "n_prompts": 8}, {**few, "classes": 100, "n_prompts": 8, "rounds": 3}]
    # 8,000 sequences of 77 tokens with their activations, several times per step
    too_many = dict.fromkeys(ALL[:-1], "8 prompts of 1,000 classes do not fit into memory")
    return [
        *specs,
        *(
            spec(f"step/ampt/c{size['classes']}-k8", tuning, ALL, method="ampt", **size)
            for size in mixtures
        ),
        spec(
            "step/ampt/c1000-k8",
            tuning,
            ("fastprompt",),
            too_many,
            method="ampt",
            **many,
            n_prompts=8,
        ),
        spec(
            "step/advpt-bank/b128",
            bank,
            ("eager", "compiled", "fastprompt"),
            IMAGES_ALONE,
            model="ViT-B-16",
            batch=128,
        ),
        *(
            spec(f"step/advpt-phase-2/c{c}", phase_two, text, NOTHING_TO_HOIST, classes=c, **phase)
            for c in (10, 1000)
        ),
    ]


@ladder(small() if SIZE == SMALL else full())
def test_steps(benchmark, spec, rung):
    replay(benchmark, spec, rung)
