"""One whole tuning step on ViT-B-32: deep multi-modal prompts, PGD-3, clean and adversarial loss.

python -m benchmarks.step                                   # writes the JSON file
python -m benchmarks.step --classes 10 --rounds 1 --out step.json   # a quick look

The rungs are in `benchmarks.rungs`: ``eager``, ``eager-hoisted`` and ``fastprompt``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fastprompt.prompts import DeepPrompts

from .machine import gemm_pass, keep_freed_memory, layer_gemms
from .models import class_names, random_clip
from .report import RESULTS, gigaflops, table, write
from .rungs import RUNGS, Rung, counting_text, gate_results, make_rungs, random_batch
from .timing import by_turns, count_flops, gate, ratio

RESULT = RESULTS / "step.json"
PAIRS = (("eager", "fastprompt"), ("eager-hoisted", "fastprompt"))


def build(classes: int, batch: int, steps: int, n_ctx: int, depth: int) -> dict[str, Rung]:
    """The rungs on ViT-B-32 with random weights."""
    clip = random_clip()
    prompts = DeepPrompts.for_clip(clip, n_ctx, depth=depth)
    images = random_batch(batch, clip.image_size, classes, steps)
    return make_rungs(clip, class_names(classes), prompts, images)


def count_work(rungs: Mapping[str, Rung]) -> dict[str, Any]:
    """Text forwards, their tokens and all FLOPs of one step, by rung; ratios of FLOPs."""
    text, flops = {}, {}
    for name, rung in rungs.items():
        with counting_text(rung) as count:
            flops[name] = count_flops(rung.step)
        text[name] = dict(count)
    ceilings = {f"{a}/{b}": flops[a] / flops[b] for a, b in PAIRS}
    return {"text": text, "flops": flops, "flops_ratios": ceilings}


def measure(rungs: Mapping[str, Rung], rounds: int, warmup: int) -> dict[str, Any]:
    """Agreement, work, then seconds by turns, beside the text tower's bare matrix products."""
    differences = gate(gate_results(rungs))
    work = count_work(rungs)
    text: Any = rungs["eager"].model.text
    gemms = layer_gemms(text.classes * text.layout.length, text.parts.width)
    functions = {name: rung.step for name, rung in rungs.items()}
    timings = by_turns({**functions, "matmul": gemm_pass(gemms)}, rounds, warmup)
    rate = sum(g.flops for g in gemms) / timings["matmul"].median
    return {
        "differences": differences,
        **work,
        "seconds": {name: timing.as_dict() for name, timing in timings.items()},
        "ratios": {f"{a}/{b}": ratio(timings, a, b) for a, b in PAIRS},
        "matmul_flops_per_second": rate,
        "matmul_share": {r: work["flops"][r] / timings[r].median / rate for r in RUNGS},
    }


def show(result: Mapping[str, Any]) -> str:
    """The result as a short table."""
    rows: list[list[object]] = [
        ["rung", "seconds", "GFLOP", "matmul share", "text forwards", "text tokens"]
    ]
    for rung in RUNGS:
        text = result["text"][rung]
        rows.append(
            [
                rung,
                f"{result['seconds'][rung]['median']:.3f}",
                gigaflops(result["flops"][rung]),
                f"{result['matmul_share'][rung]:.2f}",
                text["forwards"],
                text["tokens"],
            ]
        )
    lines = [table(rows)]
    for pair, speed in result["ratios"].items():
        quartiles = f"{speed['least']:.2f} to {speed['most']:.2f}"
        ceiling = result["flops_ratios"][pair]
        lines.append(f"{pair}: {speed['medians']:.2f}x ({quartiles}), by FLOPs {ceiling:.2f}x")
    return "\n".join(lines)


def main(
    classes: int = 100,
    batch: int = 8,
    steps: int = 3,
    n_ctx: int = 16,
    depth: int = 12,
    rounds: int = 5,
    warmup: int = 0,
    threads: int = 2,
    out: Path = RESULT,
) -> None:
    """Measure, print, write.

    Args:
        classes: named by 1 to 4 words.
        batch: images; the loss takes as many adversarial ones.
        steps: of PGD.
        n_ctx: prompt tokens in each layer of both towers.
        depth: layers with prompts of their own.
        rounds: that count, each rung once in each.
        warmup: rounds in front, beside the gate and the count of FLOPs, which warm up, too.
        threads: of torch.
        out: the result file.
    """
    torch.set_num_threads(threads)
    settings = {"classes": classes, "batch": batch, "steps": steps, "n_ctx": n_ctx, "depth": depth}
    result = {
        "settings": {"model": "ViT-B-32", "weights": "random", **settings},
        "freed_memory_kept": keep_freed_memory(),
        **measure(build(classes, batch, steps, n_ctx, depth), rounds, warmup),
    }
    print(show(result))
    write(out, result)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
