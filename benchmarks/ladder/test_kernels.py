"""Each kernel compared with its formula, forward only and with its gradients."""

from collections.abc import Callable
from functools import partial
from typing import Any

from ..common.sizes import ON_GPU, SIZE, SMALL
from . import kernel_groups
from .group import Group, Spec, ladder, replay

RUNGS = ("eager", "fastprompt")
PLAIN = "on a CPU it runs the plain implementation"


def spec(op: str, size: str, build: Callable[..., Group], backward: bool, base: bool) -> Spec:
    """Create a spec; ``compiled`` runs only at an op's base size: each size compiles anew."""
    how: dict[str, Any] = {"backward": backward, "compiled": base and backward}
    rungs = ("eager", "compiled", "fastprompt") if how["compiled"] else RUNGS
    part = "fwd-bwd" if backward else "fwd"
    left_out = {} if how["compiled"] else {"compiled": f"see the first size of {op}-fwd-bwd"}
    if not (base or backward or ON_GPU):
        left_out |= dict.fromkeys(RUNGS, f"skipped to save time: see the first size of {op}-fwd")
        rungs = ()
    return Spec(f"kernels/{op}-{part}/{size}", partial(build, **how), rungs, left_out)


def swept() -> list[Spec]:
    """Return every op at its base size, and with one size changed at a time."""
    small = SIZE == SMALL
    # images, classes, prompts; the base size first
    mixtures = [(128, 1000, 8), (128, 100, 8), (128, 1000, 2), (128, 1000, 32), (16, 1000, 8)]
    classes = (200, 1000) if small else (1000, 200, 10_000)
    images = (8, 2, 32) if small else (32, 8, 256)
    losses = [(64, 100), (8, 100), (64, 1000)] if small else [(256, 1000), (32, 1000), (256, 100)]
    cases: list[tuple[str, str, Callable[..., Group]]] = [
        *(
            ("mixture_logits", f"b{b}-c{c}-k{k}", partial(kernel_groups.mixture, b, c, k))
            for b, c, k in mixtures
        ),
        *(("prefix_attention", f"c{c}", partial(kernel_groups.attention, c)) for c in classes),
        *(("layer_consistency", f"b{b}", partial(kernel_groups.layers, b)) for b in images),
        *(
            ("consistency_loss", f"b{b}-c{c}", partial(kernel_groups.consistency, b, c))
            for b, c in losses
        ),
    ]
    seen: set[str] = set()
    specs = []
    for op, size, build in cases:
        base = op not in seen
        seen.add(op)
        specs += [spec(op, size, build, backward, base) for backward in (False, True)]
    return specs


def on_pictures() -> list[Spec]:
    """Return the ops on images: no backward; skipped on a CPU, which runs the plain code."""
    builds: dict[str, tuple[Callable[..., Group], bool]] = {
        "pgd_step": (kernel_groups.sign_step, True),
        "apgd_step": (kernel_groups.two_point_step, True),
        "random_start": (kernel_groups.start, False),
    }
    images = (8,) if SIZE == SMALL else (256, 32)
    return [
        _on_pictures(f"{op}-fwd/b{b}", partial(build, b, backward=False), compiled)
        for op, (build, compiled) in builds.items()
        for b in images
    ]


def _on_pictures(name: str, build: Callable[..., Group], compiled: bool) -> Spec:
    rungs = ("eager", "compiled", "fastprompt") if compiled else RUNGS
    left_out = {} if compiled else {"compiled": "torch's generator is already one kernel"}
    if not ON_GPU:
        rungs, left_out = (), {"fastprompt": PLAIN}
    return Spec(f"kernels/{name}", partial(build, compiled=compiled), rungs, left_out)


@ladder([*swept(), *on_pictures()])
def test_kernels(benchmark, spec, rung):
    replay(benchmark, spec, rung)
