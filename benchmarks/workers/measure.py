"""Seconds of AdvPT's bank and of an evaluation in one process, and on Ray workers.

All have one thread. The cluster runs before the clock starts; the start of the workers, which
import torch and receive the model, is part of the time. Sanity checks, which run in the first
process, are off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fastprompt import evaluate, load_clip, load_data
from fastprompt._utils.files import read_json
from fastprompt.attacks import FeaturePGD
from fastprompt.methods.advpt_bank import make_bank
from fastprompt.runners import HERE, Ray, Runner, connected

from ..common.machine import keep_freed_memory
from ..common.paths import results
from ..common.report import markdown, table, write
from ..common.timing import RungsDifferError, by_turns, ratio

RESULT = results() / "workers.json"
ALONE = "one process"
PARTS = ("bank", "evaluation")
BATCH, STEPS = 8, 10


def measure(
    model: str = "tiny-photos",
    images: int = 720,
    workers: Sequence[int] = (1, 2),
    attack: str = "pgd-40",
    rounds: int = 3,
    parts: Sequence[str] = PARTS,
    out: str = str(RESULT),
) -> None:
    """Time both by turns, after a check that the results are equal, and write the file.

    Args:
        model: a bundled model.
        images: the number of test images that are attacked, at most 800.
        workers: numbers of workers.
        attack: of the evaluation.
        rounds: times that each runs, after one untimed round.
        parts: ``"bank"``, ``"evaluation"`` or both; the file keeps the row of the other.
    """
    torch.set_num_threads(1)
    kept = keep_freed_memory()
    runners: dict[str, Runner] = {ALONE: HERE}
    runners |= {_name(n): Ray(workers=n) for n in workers}
    known = read_json(Path(out))["rows"] if Path(out).exists() else []
    rows = {row["what"]: row for row in known}
    attacks = {"bank": f"feature-pgd-{STEPS}", "evaluation": attack}
    with connected(Ray(workers=max(workers))):
        for what in parts:
            run = _bank(model, images) if what == "bank" else _evaluation(model, images, attack)
            about: dict[str, Any] = {"model": model, "attack": attacks[what], "images": images}
            rows[what] = {"what": what, **about, **_times(what, rounds, runners, run)}
    write(Path(out), {"freed_memory_kept": kept, "rows": [rows[p] for p in PARTS if p in rows]})
    show(out)


def _name(workers: int) -> str:
    return "1 worker" if workers == 1 else f"{workers} workers"


def _times(
    what: str, rounds: int, runners: dict[str, Runner], run: Callable[[Runner], Any]
) -> dict[str, Any]:
    wanted = run(HERE)
    for name, runner in runners.items():
        if runner is not HERE and run(runner) != wanted:
            raise RungsDifferError(f"{what}: the result of {name} is not that of {ALONE}")
    calls = {name: (lambda runner=runner: run(runner)) for name, runner in runners.items()}
    times = by_turns(calls, rounds=rounds, warmup=0)  # each has run once
    return {
        "seconds": {name: timing.as_dict() for name, timing in times.items()},
        "speedup": {name: ratio(times, ALONE, name) for name in runners if name != ALONE},
    }


def _bank(model: str, images: int) -> Callable[[Runner], Any]:
    """Return a function that attacks images for AdvPT's bank, and returns its bytes."""
    clip = load_clip(model, device="cpu")
    data = torch.utils.data.Subset(_data(model).test, range(images))
    attack = FeaturePGD(clip.encode_image, 8 / 255, STEPS)

    def run(runner: Runner) -> bytes:
        bank = make_bank(clip, data, attack, batch=BATCH, progress=False, runner=runner)
        return bank.features.numpy().tobytes()

    return run


def _evaluation(model: str, images: int, attack: str) -> Callable[[Runner], Any]:
    """Return a function that evaluates the zero-shot classifier, and returns the flags."""
    clip, data = load_clip(model, device="cpu"), _data(model)
    classifier = clip.zero_shot(data.classnames, data.templates)
    options: dict[str, Any] = {"batch": BATCH, "limit": images, "sanity": "off", "progress": False}

    def run(runner: Runner) -> list[str]:
        # every image is attacked to the end: the work of a window does not depend on the others
        found = evaluate(
            classifier, data.test, attack, "1/255", stop=False, runner=runner, **options
        )
        return [row["flags"] for row in found.rows]

    return run


def _data(model: str) -> Any:
    name = "photos" if model.startswith("tiny-photos") else "shapes"
    return load_data(name).for_model(load_clip(model, device="cpu"))


def lines(result: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of the result's table: seconds, and the speed-ups."""
    found = result["rows"]
    names = dict.fromkeys(name for row in found for name in row["seconds"])
    faster = [name for name in names if name != ALONE]
    gained = [f"{name}, speed-up" for name in faster]
    rows = [["", *(f"{name} (s)" for name in names), *gained, "rounds"]]
    for row in found:
        seconds, gains = row["seconds"], row["speedup"]
        line = [f"{row['what']}, {row['attack']}, {row['images']} images"]
        line += [f"{seconds[n]['median']:.1f}" if n in seconds else "" for n in names]
        line += [f"{gains[n]['medians']:.2f}x" if n in gains else "" for n in faster]
        rows.append([*line, str(seconds[ALONE]["rounds"])])
    return rows


def show(out: str = str(RESULT)) -> None:
    """Print the file's table."""
    head, *rows = lines(read_json(Path(out)))
    print(table([head, *rows]))
    print(markdown(head, rows))
