"""ViT-B-32's text encoder: class features of a trainable context, forward and backward.

python -m benchmarks.ladder.text_tower             # everything, writes the JSON file
python -m benchmarks.ladder.text_tower --many 0    # without the run on 21,000 classes

Compares ``eager``, open_clip's modules on 77 tokens per class, with ``fastprompt``. Times are
measured in a process that keeps freed memory, peak memory in one process each.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastprompt import FrozenCLIP
from fastprompt.towers import ReferenceTextTower, TextTower
from fastprompt.towers.text_base import PromptedText

from ..common.machine import (
    gemm_pass,
    in_child,
    keep_freed_memory,
    layer_gemms,
    peak_memory,
)
from ..common.models import class_names, random_clip
from ..common.paths import TWO_CORES
from ..common.report import gigaflops, mebibytes, table, write
from ..common.timing import by_turns, count_flops, gate, ratio

RESULT = TWO_CORES / "text.json"
RUNGS = ("eager", "fastprompt")


class Rung:
    """A tower's features and the context's gradient, for a fixed output gradient."""

    def __init__(
        self,
        rung: str,
        clip: FrozenCLIP,
        names: Sequence[str],
        n_ctx: int,
        chunk: int | None = None,
    ) -> None:
        self.tower: PromptedText = (
            ReferenceTextTower(clip, names, n_ctx)
            if rung == "eager"
            else TextTower(clip, names, n_ctx, class_chunk=chunk)
        )
        generator = torch.Generator().manual_seed(0)
        parts = self.tower.parts
        context = 0.02 * torch.randn(n_ctx, parts.width, generator=generator)
        self.context = context.requires_grad_()
        size = clip.encode_text(["a"]).shape[-1]
        self.direction = torch.randn(len(names), size, generator=generator)

    def __call__(self) -> dict[str, Tensor]:
        features = self.tower(self.context)
        (gradient,) = torch.autograd.grad(features, self.context, self.direction)
        return {"features": features.detach(), "context gradient": gradient}


def peak(rung: str, classes: int, n_ctx: int, threads: int, chunk: int | None) -> tuple[int, float]:
    """Return peak bytes above weights and tower, and seconds, of one forward and backward.

    Freed memory is returned to the system here, so that the peak counts only memory in use at once.
    """
    torch.set_num_threads(threads)
    clip, names = random_clip(), class_names(classes)
    Rung(rung, clip, names[:2], n_ctx)()  # libraries allocate their buffers in the first call
    run = Rung(rung, clip, names, n_ctx, chunk)
    seconds = []

    def timed() -> None:
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)

    return peak_memory(timed), seconds[0]


def measure_memory(classes: int, n_ctx: int, threads: int) -> dict[str, Any]:
    """Return each implementation's peak bytes, in one process each, and their ratio."""
    peaks = {r: in_child(peak, r, classes, n_ctx, threads, None)[0] for r in RUNGS}
    return {"peak_bytes": peaks, "ratio": peaks["eager"] / peaks["fastprompt"]}


def measure_many(classes: int, n_ctx: int, threads: int, chunk: int) -> dict[str, Any]:
    """Run the fast tower once on many classes, in chunks; return peak bytes and seconds."""
    size, seconds = in_child(peak, "fastprompt", classes, n_ctx, threads, chunk)
    return {"classes": classes, "class_chunk": chunk, "peak_bytes": size, "seconds": seconds}


def measure_speed(classes: int, n_ctx: int, rounds: int, warmup: int) -> dict[str, Any]:
    """Check agreement, time both and one layer's products interleaved, count FLOPs."""
    clip, names = random_clip(), class_names(classes)
    rungs = {rung: Rung(rung, clip, names, n_ctx) for rung in RUNGS}
    differences = gate({rung: run() for rung, run in rungs.items()})
    flops = {rung: count_flops(run) for rung, run in rungs.items()}
    eager = rungs["eager"].tower
    gemms = layer_gemms(classes * eager.layout.length, eager.parts.width)
    timings = by_turns({**rungs, "matmul": gemm_pass(gemms)}, rounds, warmup)
    rate = sum(g.flops for g in gemms) / timings["matmul"].median
    return {
        "differences": differences,
        "seconds": {rung: timing.as_dict() for rung, timing in timings.items()},
        "ratios": {"eager/fastprompt": ratio(timings, "eager", "fastprompt")},
        "flops": flops,
        "flops_ratio": flops["eager"] / flops["fastprompt"],
        "matmul_flops_per_second": rate,
        "matmul_share": {r: flops[r] / timings[r].median / rate for r in RUNGS},
    }


def show(result: dict[str, Any]) -> str:
    """Format the result as a short table."""
    head: list[object] = ["rung", "seconds", "GFLOP", "matmul share"]
    memory = result["memory"]
    rows = [[*head, "peak MiB"] if memory else head]
    for rung in RUNGS:
        row: list[object] = [
            rung,
            f"{result['seconds'][rung]['median']:.3f}",
            gigaflops(result["flops"][rung]),
            f"{result['matmul_share'][rung]:.2f}",
        ]
        rows.append([*row, mebibytes(memory["peak_bytes"][rung])] if memory else row)
    speed = result["ratios"]["eager/fastprompt"]
    lines = [
        table(rows),
        f"eager/fastprompt: {speed['medians']:.1f}x ({speed['least']:.1f} to {speed['most']:.1f}),"
        f" by FLOPs {result['flops_ratio']:.1f}x"
        + (f", memory {memory['ratio']:.1f}x" if memory else ""),
    ]
    if many := result["many_classes"]:
        lines.append(
            f"{many['classes']} classes in chunks of {many['class_chunk']}: {many['seconds']:.1f} s"
            f", peak {mebibytes(many['peak_bytes'])} MiB"
        )
    return "\n".join(lines)


def main(
    classes: int = 200,
    n_ctx: int = 16,
    rounds: int = 7,
    warmup: int = 0,
    threads: int = 2,
    memory: bool = True,
    many: int = 21_000,
    chunk: int = 500,
    out: Path = RESULT,
) -> None:
    """Measure, print, write.

    Args:
        classes: number of classes for both implementations.
        n_ctx: context tokens.
        rounds: timed interleaved rounds.
        warmup: untimed rounds, in addition to the equality check and the FLOP count.
        threads: torch's threads.
        memory: also measure each implementation's peak memory.
        many: classes of the run in chunks; 0 skips it.
        chunk: classes per chunk in that run.
        out: the result file.
    """
    torch.set_num_threads(threads)
    # first, in child processes, while this process is small
    peaks = measure_memory(classes, n_ctx, threads) if memory else None
    many_classes = measure_many(many, n_ctx, threads, chunk) if many else None
    result = {
        "settings": {"model": "ViT-B-32", "weights": "random", "classes": classes, "n_ctx": n_ctx},
        "freed_memory_kept": keep_freed_memory(),
        **measure_speed(classes, n_ctx, rounds, warmup),
        "memory": peaks,
        "many_classes": many_classes,
    }
    print(show(result))
    write(out, result)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
