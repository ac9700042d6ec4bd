"""PGD-10 through the prompts, as in tuning and evaluation, and compared with `torchattacks.PGD`."""

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastprompt import DeepPrompts
from fastprompt.tuning.online_pgd import OnlinePGD

from ..common.clips import (
    OURS,
    OURS_FP32,
    in_both_precisions,
    low_dtypes,
    prompted,
    step_by_step,
)
from ..common.models import BUNDLED, class_names, shared_clip
from ..common.sizes import DEVICE, ON_GPU, SIZE, SMALL
from ..common.timing import count_flops, count_without_values
from .drop_in import Attacks
from .group import Group, Spec, ladder, replay

RUNGS = ("eager", "eager-hoisted", "eager-careful", "compiled", "fastprompt")
COMPILING = {"compiled": "compiling it takes half a minute on a CPU; see towers/"}
ALPHA, EPS, STEPS = 1 / 255, 4 / 255, 10


class Attack:
    """PGD-10 through deep prompts, including the class features."""

    def __init__(self, rung: str, clip: Any, names: list[str], batch: int) -> None:
        prompts = DeepPrompts.for_clip(clip, 4).to(DEVICE)
        self.model = prompted(rung, clip, names, prompts)
        generator = torch.Generator().manual_seed(0)
        size = clip.image_size
        self.images = torch.rand(batch, 3, size, size, generator=generator).to(DEVICE)
        self.labels = torch.arange(batch, device=DEVICE) % len(names)
        self.rows = torch.arange(batch, device=DEVICE)
        # eager code captures no CUDA graph
        self.pgd = OnlinePGD(self.model, EPS, ALPHA, STEPS, capture=rung in (OURS, OURS_FP32))

    def __call__(self) -> Tensor:
        return self.pgd(self.images, self.labels, self.rows).images

    def results(self) -> dict[str, Tensor]:
        """Return loss and gradient of the first step, before the sign."""
        pixels = self.images.clone().requires_grad_()
        if self.model.engine == "reference":
            loss = F.cross_entropy(self.model(pixels), self.labels, reduction="sum")
        else:
            loss = self.model.attack_loss(pixels, self.labels, *self.model.prepare().detached())
        return {"loss": loss.detach(), "gradient": torch.autograd.grad(loss, pixels)[0]}


def attack(rungs: tuple[str, ...], model: str, classes: int, batch: int) -> Group:
    """Build the attack's group; images per second are ``images`` over the median."""
    clip = shared_clip(model, DEVICE)
    made = {rung: Attack(rung, clip, class_names(classes), batch) for rung in rungs}
    results = {rung: one.results() for rung, one in made.items()}
    size = {"model": model, "classes": classes, "images": batch, "steps": STEPS}

    def flops(rung: str) -> int:
        counted = made["eager-careful" if rung == "compiled" else rung]
        # for the bundled model, counting without values takes longer than a run
        return (count_flops if model in BUNDLED else count_without_values)(counted)

    def inside(rung: str, keep: bool) -> AbstractContextManager[None]:
        return step_by_step(made[rung].model, made[rung].pgd, compiled=keep)

    return Group(
        made,
        results,
        rounds=2,
        warmup=0,
        dtypes=low_dtypes(),
        inside=inside,
        flops=flops,
        size=size,
    )


def peer(batch: int) -> Group:
    """Build the group of both PGDs on one classifier; without a random start, images are equal."""
    case = Attacks(batch, DEVICE)
    results, about = case.results(), {**case.size(), "images": batch}
    return Group(
        case.rungs(),
        results,
        rounds=2,
        warmup=0,
        baseline=case.baseline,
        flops=(lambda _: 0) if ON_GPU else None,  # not visible in a captured attack
        size=about,
    )


def specs() -> list[Spec]:
    """Return the bundled model's groups on two cores, ViT-B/16's on a GPU."""
    model, classes, batch = ("tiny-shapes", 80, 32) if SIZE == SMALL else ("ViT-B-16", 100, 256)
    name = f"{model.lower()}-b{batch}"
    both, small = ("torchattacks", "fastprompt"), "tiny-shapes-b32"
    rungs = tuple(r for r in RUNGS if SIZE != SMALL or r not in COMPILING)
    rungs = in_both_precisions(rungs)
    left_out = COMPILING if SIZE == SMALL else {}
    build = partial(attack, rungs, model, classes, batch)
    return [
        Spec(f"attack/pgd-{STEPS}/{name}", build, rungs, left_out),
        # as in examples/: one changed line in the user's code
        Spec(f"peers/pgd-{STEPS}/{small}", partial(peer, 32), both),
    ]


@ladder(specs())
def test_attack(benchmark, spec, rung):
    replay(benchmark, spec, rung)
