"""The attack alone on a GPU: images per second, its share of the matmul rate, its kernels."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastprompt.model.prompted import PromptedCLIP
from fastprompt.prompts.context import TextContext
from fastprompt.tuning.online_pgd import OnlinePGD

from ..common.gpu_timing import DEVICE, event_turns, peak_bytes, profiled
from ..common.limits import multiplying
from ..common.models import class_names, random_clip
from ..common.notes import note
from ..common.timing import count_flops
from ..common.tuner_steps import random_images
from ..ladder.group import LIMIT
from .smoke import captured

N_CTX = 16


def make_attacks(batch: int, steps: int, classes: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the attack in each way of running it, the one expected to be fastest first."""
    clip = random_clip("ViT-B-16").to(DEVICE)
    data = random_images(batch, clip.image_size, classes)
    images, labels = data.images.to(DEVICE).float() / 255, data.labels.to(DEVICE)
    rows = torch.arange(batch, device=DEVICE)
    for compiled in (True, False):
        prompts = TextContext(N_CTX, clip.text_parts.width).to(DEVICE)
        names = class_names(classes)
        model = PromptedCLIP(clip, names, prompts, precision="bf16", compile=compiled)
        prepared = model.prepare()
        for graph in (True, False):
            attack = OnlinePGD(model, "4/255", "1/255", steps, capture=graph)

            def run(attack: OnlinePGD = attack, prepared: Any = prepared) -> Tensor:
                return attack(images, labels, rows, prepared).images

            run()
            name = f"compile={compiled}, graph={graph}"
            note(f"{name}: captured", captured(attack))
            yield name, run


def attack_rate(
    batch: int = 256, steps: int = 10, classes: int = 100, rounds: int = 5
) -> dict[str, Any]:
    """Measure PGD-10 on ViT-B/16 in bf16: images per second, share of the plain product's rate.

    Each variant is timed alone as soon as it runs, the first also profiled. Then all variants and
    the plain product run interleaved.
    """
    out: dict[str, Any] = {"batch": batch, "steps": steps}
    ways: dict[str, Callable[[], Tensor]] = {}
    for name, run in make_attacks(batch, steps, classes):
        ways[name] = run
        alone = event_turns({name: run}, rounds, warmup=1)[name]
        note(f"{name}: alone", alone.as_dict() | {"images_per_second": batch / alone.median})
        if len(ways) == 1:
            note(f"{name}: profile", profiled(run))
    limit = multiplying(torch.bfloat16)
    timings = event_turns({**ways, LIMIT: limit.run}, rounds, warmup=1)
    rate = out["bf16_matmul_flops"] = limit.amount / timings[LIMIT].median
    plain = list(ways)[-1]
    flops = out["flops"] = count_flops(ways[plain])
    for name in ways:
        seconds = timings[name].median
        out[name] = {
            **timings[name].as_dict(),
            "images_per_second": batch / seconds,
            "matmul_share": flops / seconds / rate,
        }
        note(name, out[name])
    for name, way in ways.items():
        out[name] |= profiled(way)
    out[f"peak_bytes, {plain}"] = peak_bytes(ways[plain])
    return out
