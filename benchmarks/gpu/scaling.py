"""What a tuning step sends, and how many GPUs it should scale to: an estimate on paper.

A process's seconds are those of `budget`, for its images of the batch; the text encoder's part is
the same in every process, unless the classes are divided. The all-reduce follows the backward pass
and overlaps with nothing.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import nn

from fastprompt.methods.advpt import AdvPTConfig
from fastprompt.methods.ampt import AMPTConfig
from fastprompt.methods.apt import APTConfig
from fastprompt.methods.capt import CAPTConfig
from fastprompt.methods.nap import NAPConfig
from fastprompt.prompts import DeepPrompts, PromptMixture, TextContext

from ..common.report import markdown
from ..growth.flop_model import Sizes
from .budget import FASTER, LEARNED_COPIES, PUBLISHED, SLOWER, Machine, parts

BATCH = 64  # of all processes together
WORLDS = (2, 4, 8, 16, 64)
IMAGE_KERNELS = 22  # of an image block, forward and backward
FLOAT32_BYTES = 4
MACHINES = (FASTER, SLOWER)

_WIDTH, _IMAGE = PUBLISHED.text_width, PUBLISHED.image_width
_MIX = AMPTConfig()
_IMAGES = ("attack", "patch", "loss")  # parts of `budget` that grow with the images


@dataclass(frozen=True)
class Fabric:
    """Assumed rates of the slowest link in the ring of processes.

    Attributes:
        bandwidth: bytes per second, in each direction.
        latency: seconds of a hop.
    """

    bandwidth: float
    latency: float


FABRICS = {
    "NVLink": Fabric(bandwidth=300e9, latency=4e-6),
    "100 Gbit/s": Fabric(bandwidth=11e9, latency=10e-6),
}


@dataclass(frozen=True, eq=False)
class Method:
    """A method with its default settings.

    Attributes:
        sizes: in which its step differs from one that tunes a text context on clean images.
        prompts: makes what it learns, for ViT-B/16.
        frozen: the loss also needs the frozen model's view of the clean images.
    """

    sizes: Mapping[str, Any]
    prompts: Callable[[], nn.Module]
    frozen: bool = False

    def step(self, base: Sizes) -> Sizes:
        """Return the sizes of a step on a model and images with these ``base`` sizes."""
        text = {"steps": 0, "prompts": 1, "depth": 0, "passes": 1, "router": 0}
        shared = {"keeps_layers": False, "refined": False, "eager": False}
        own = {**text, **shared, **self.sizes}
        return dataclasses.replace(base, prefix=own["n_ctx"] + 1, **own)


METHODS = {
    "CoOp": Method(
        {"n_ctx": APTConfig.default_n_ctx},
        lambda: TextContext(APTConfig.default_n_ctx, _WIDTH),
    ),
    "APT": Method(
        {"n_ctx": APTConfig.default_n_ctx, "steps": APTConfig.steps},
        lambda: TextContext(APTConfig.default_n_ctx, _WIDTH),
    ),
    "AdvPT": Method(  # its images are in the bank
        {"n_ctx": AdvPTConfig.default_n_ctx, "image_width": 0, "image_layers": 0, "patches": 0},
        lambda: TextContext(AdvPTConfig.default_n_ctx, _WIDTH),
    ),
    "AMPT": Method(
        {"n_ctx": _MIX.default_n_ctx, "steps": _MIX.steps, "prompts": _MIX.n_prompts}
        | {"router": PUBLISHED.features // 4},
        lambda: PromptMixture(_MIX.n_prompts, _MIX.default_n_ctx, _WIDTH, PUBLISHED.features),
    ),
    "CAPT": Method(
        {"n_ctx": CAPTConfig.default_n_ctx, "steps": CAPTConfig.steps, "passes": 2}
        | {"depth": PUBLISHED.depth},
        lambda: DeepPrompts(PUBLISHED.depth, CAPTConfig.default_n_ctx, _WIDTH, _IMAGE),
        frozen=True,
    ),
    "NAP": Method(
        {"n_ctx": NAPConfig.default_n_ctx, "steps": NAPConfig.steps, "passes": 2}
        | {"depth": PUBLISHED.depth, "keeps_layers": True, "refined": True},
        lambda: DeepPrompts(
            PUBLISHED.depth, NAPConfig.default_n_ctx, _WIDTH, _IMAGE, refiners=PUBLISHED.depth - 1
        ),
    ),
}


@cache
def learned(name: str) -> int:
    """Return the number of a method's parameters."""
    return sum(p.numel() for p in METHODS[name].prompts().parameters())


def computing(name: str, machine: Machine, batch: int, shards: int = 1) -> float:
    """Return seconds of a step's computation on ``batch`` images and ``1 / shards`` of classes."""
    method = METHODS[name]
    s = dataclasses.replace(method.step(PUBLISHED), batch=batch)
    own = {n: math.ceil(getattr(s, n) / shards) for n in ("classes", "suffixes")}
    text = _sum(parts(dataclasses.replace(s, **own), machine), "text")
    images, passes = _sum(parts(s, machine), *_IMAGES), s.steps + (1.0 if s.visual else 0.5)
    if method.frozen:
        seen = dataclasses.replace(METHODS["CoOp"].step(PUBLISHED), batch=batch)
        images, passes = images + _sum(parts(seen, machine), *_IMAGES), passes + 0.5
    # few images do not fill the card: each kernel takes as long as a small one
    images = max(images, passes * s.image_layers * IMAGE_KERNELS * machine.launch)
    return text + images + LEARNED_COPIES * FLOAT32_BYTES * learned(name) / machine.bandwidth


def _sum(seconds: Mapping[str, float], *groups: str) -> float:
    return sum(value for name, value in seconds.items() if name.startswith(groups))


def all_reduce(size: float, world: int, fabric: Fabric) -> float:
    """Return seconds of a ring all-reduce of so many bytes, or of a gather and its backward."""
    sent = 2 * (world - 1) / world * size
    return sent / fabric.bandwidth + 2 * math.ceil(math.log2(world)) * fabric.latency


def speed_up(name: str, machine: Machine, fabric: Fabric, world: int, sharded: bool) -> float:
    """Return a method's speed-up over one process; ``sharded``: with divided classes."""
    took = computing(name, machine, math.ceil(BATCH / world), world if sharded else 1)
    took += all_reduce(FLOAT32_BYTES * learned(name), world, fabric)
    if sharded:
        s = METHODS[name].step(PUBLISHED)
        took += all_reduce(FLOAT32_BYTES * s.prompts * s.classes * s.features, world, fabric)
    return computing(name, machine, BATCH) / took


# ---- tables ------------------------------------------------------------------------------------


def sent_table() -> str:
    """Return a Markdown table of the gradients that each method sends in a step."""
    names: dict[int, list[str]] = {}
    for name in METHODS:
        names.setdefault(learned(name), []).append(name)
    rows = [
        [", ".join(same), f"{count:,}", f"{FLOAT32_BYTES * count / 1e6:.2f} MB"]
        for count, same in names.items()
    ]
    return markdown(["method", "parameters", "gradients in float32"], rows)


def table() -> str:
    """Return a Markdown table of speed-ups, each the smaller one of both machines."""
    rows = []
    for name in METHODS:
        low, high = (1e3 * computing(name, machine, BATCH) for machine in MACHINES)
        for link, fabric in FABRICS.items():
            whole, divided = (
                [min(speed_up(name, m, fabric, w, sharded) for m in MACHINES) for w in WORLDS]
                for sharded in (False, True)
            )
            cells = [f"{a:.1f} / {b:.1f}" for a, b in zip(whole, divided, strict=True)]
            ends = f"{_end(whole)} / {_end(divided)}"
            rows.append([name, link, f"{low:.0f} to {high:.0f} ms", *cells, ends])
    head = ["method", "link", "1 process", *map(str, WORLDS), "ends at"]
    assumed = "; ".join(
        f"{link}: {fabric.bandwidth / 1e9:g} GB/s in each direction, {1e6 * fabric.latency:g} µs "
        "a hop"
        for link, fabric in FABRICS.items()
    )
    return f"{markdown(head, rows)}\n\nAssumed: {assumed}; {IMAGE_KERNELS} kernels an image block."


def _end(speed_ups: Sequence[float]) -> int:
    """Return the largest number of processes whose speed-up is at least half of it."""
    return max([1, *(w for w, found in zip(WORLDS, speed_ups, strict=True) if found >= w / 2)])
