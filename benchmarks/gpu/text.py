"""The text encoder on a GPU: 1,000 classes compared with eager code, and 21,000 in chunks."""

from collections.abc import Callable, Sequence
from typing import Any

import open_clip
import torch
from torch import Tensor

from fastprompt import FrozenCLIP
from fastprompt.towers import ReferenceTextTower, TextTower

from ..common.gpu_timing import DEVICE, event_turns, peak_bytes
from ..common.models import composed_names, random_clip
from ..common.notes import note
from ..common.timing import difference

N_CTX = 16


def _context(clip: FrozenCLIP) -> Tensor:
    width = clip.text_parts.width
    return (0.02 * torch.randn(N_CTX, width)).to(DEVICE).requires_grad_()


def text_tower(classes: int | None = None) -> dict[str, Any]:
    """Measure ViT-B-32's text encoder on ImageNet's names, forward and backward, in float32.

    Args:
        classes: only the first names.
    """
    clip = random_clip("ViT-B-32").to(DEVICE)
    context = _context(clip)
    names = list(dict.fromkeys(open_clip.IMAGENET_CLASSNAMES))[:classes]
    towers = {
        "eager": ReferenceTextTower(clip, names, N_CTX),
        "fastprompt": TextTower(clip, names, N_CTX, dtype=torch.float32),
        "fastprompt, bf16": TextTower(clip, names, N_CTX, dtype=torch.bfloat16),
    }
    steps: dict[str, Callable[[], Tensor]] = {}
    features: dict[str, Tensor] = {}
    for rung, tower in towers.items():

        def step(tower: Any = tower) -> Tensor:
            return torch.autograd.grad(tower(context).float().square().sum(), context)[0]

        steps[rung] = step
        features[rung] = tower(context).detach().float()
    timings = event_turns(steps, 5, warmup=2)
    out: dict[str, Any] = {"classes": len(names)}
    for rung, step in steps.items():
        out[rung] = {
            **timings[rung].as_dict(),
            "peak_bytes": peak_bytes(step),
            "difference": difference(features[rung], features["eager"]),
        }
        note(rung, out[rung])
    out["ratio"] = timings["eager"].median / timings["fastprompt"].median
    out["memory_ratio"] = out["eager"]["peak_bytes"] / out["fastprompt"]["peak_bytes"]
    return out


def many_classes(
    classes: int = 21_000, chunks: Sequence[int | None] = (1000, 4000, None)
) -> dict[str, Any]:
    """Measure the text encoder on 21,000 names, in chunks."""
    clip = random_clip("ViT-B-32").to(DEVICE)
    context = _context(clip)
    out: dict[str, Any] = {"classes": classes}
    for chunk in chunks:
        tower = TextTower(clip, composed_names(classes), N_CTX, class_chunk=chunk)

        def step(tower: TextTower = tower) -> Tensor:
            return torch.autograd.grad(tower(context).square().sum(), context)[0]

        name = f"chunk {tower.class_chunk}{'' if chunk else ' (default)'}"
        timing = event_turns({"": step}, 3, warmup=1)[""]
        out[name] = {**timing.as_dict(), "peak_bytes": peak_bytes(step)}
        note(name, out[name])
    return out
