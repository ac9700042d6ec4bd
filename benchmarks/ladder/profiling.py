"""Profiles a NAP step by its parts and by kinds of operations.

python -m benchmarks.ladder.profiling measure     # writes profile.json into the machine's results
python -m benchmarks.ladder.profiling table       # prints the tables of benchmarks/README.md
"""

from __future__ import annotations

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from ..common.machine import keep_freed_memory
from ..common.models import class_names, random_clip
from ..common.paths import TWO_CORES, results
from ..common.report import markdown, write
from ..common.sizes import DEVICE, ON_GPU, THREADS
from ..common.tuner_steps import TunerStep, random_images, tuner_steps

RESULT = TWO_CORES / "profile.json"
PARTS = ("text forward", "attack", "loss forward", "backward")
# substrings of operator names; the first kind that matches counts
KINDS = {
    # first: names of a GPU's attention kernels also contain those of matrix products
    "attention": ("attention", "flash", "fmha"),
    "matrix products": ("::mm", "addmm", "bmm", "matmul", "gemm", "cutlass", "nvjet", "conv"),
    "GELU": ("gelu",),
    "LayerNorm": ("layer_norm", "native_norm"),
    "copies and joins": ("copy", "cat", "fill", "zero", "index", "stack"),
}
OTHER = "all other"


def _synchronize() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def parts(step: TunerStep) -> dict[str, float]:
    """Return the seconds of each part of one step; on a GPU, synchronize after each."""
    step.tuner.prompts.zero_grad()
    batch, marks = step.begin(), []

    def mark() -> None:
        _synchronize()
        marks.append(time.perf_counter())

    mark()
    _ = batch.prepared
    mark()
    _ = batch.adv
    mark()
    loss = step.tuner.loss(batch)
    mark()
    loss.backward()
    mark()
    seconds = (b - a for a, b in pairwise(marks))
    return dict(zip(PARTS, seconds, strict=True))


def kind_of(name: str) -> str:
    """Return the kind in `KINDS` that an operator belongs to."""
    lower = name.lower()
    return next((k for k, words in KINDS.items() if any(w in lower for w in words)), OTHER)


def shares(events: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Return each kind's share of the operators' own time."""
    seconds: dict[str, float] = defaultdict(float)
    for name, taken in events:
        seconds[kind_of(name)] += taken
    total = sum(seconds.values())
    return {kind: seconds[kind] / total for kind in (*KINDS, OTHER)}


def kinds(step: TunerStep) -> dict[str, float]:
    """Return the shares of a step's operators, on the GPU if there is one."""
    activity = ProfilerActivity.CUDA if ON_GPU else ProfilerActivity.CPU
    with profile(activities=[activity]) as record:
        step()
        _synchronize()
    attribute = "self_device_time_total" if ON_GPU else "self_cpu_time_total"
    return shares((e.key, getattr(e, attribute)) for e in record.key_averages())


def measure(
    classes: int = 100, batch: int = 8, steps: int = 3, rounds: int = 5, out: str = ""
) -> None:
    """Profile the fast engine's step on ViT-B-32 with prompts in every layer; write, print.

    Args:
        classes: number of classes, with names of 1 to 4 words.
        batch: number of images.
        steps: of PGD.
        rounds: repetitions of the timing of the parts; medians are reported.
        out: the result file; default: profile.json in this machine's results.
    """
    torch.set_num_threads(THREADS)
    keep_freed_memory()
    clip = random_clip().to(DEVICE)
    data = random_images(batch, clip.image_size, classes)
    made = tuner_steps(("fastprompt",), "nap", clip, class_names(classes), data, steps=steps)
    step = made["fastprompt"]
    step()
    found = [parts(step) for _ in range(rounds)]
    path = Path(out) if out else results() / "profile.json"
    size = {"model": "ViT-B-32", "classes": classes, "batch": batch, "steps": steps}
    medians = {part: statistics.median(one[part] for one in found) for part in PARTS}
    write(path, {"settings": size, "seconds": medians, "shares": kinds(step)})
    print(table(json.loads(path.read_text("utf-8"))))


def table(result: Mapping[str, Any]) -> str:
    """Return both tables in Markdown."""
    total = sum(result["seconds"].values())
    by_part = [[p, f"{s:.2f}", f"{100 * s / total:.0f} %"] for p, s in result["seconds"].items()]
    by_kind = [[kind, f"{100 * share:.0f} %"] for kind, share in result["shares"].items()]
    first = markdown(["part of the step", "seconds", "share"], by_part)
    return f"{first}\n\n{markdown(['kind of operation', 'share'], by_kind)}"


def show(path: str = str(RESULT)) -> None:
    """Print the tables of a result file."""
    print(table(json.loads(Path(path).read_text("utf-8"))))


if __name__ == "__main__":
    from jsonargparse import CLI

    CLI({"measure": measure, "table": show})
