"""Measures how a tuning step's cost grows with classes, prompts, images, depth and attack steps.

Each sweep is measured with ``eager`` and with ``fastprompt``. A size whose FLOPs by `flop_model`
exceed an implementation's limit is skipped and listed. Exponents are slopes in log-log space: of a
least-squares fit over the sweep, and between neighbors. A cost ``a + b n`` has local exponents that
rise from 0 to 1, and the fit's lies between them.

The formula is checked in two ways: against counted FLOPs at the middle point of each sweep, and,
scaled to that point, against the seconds of the others. Deviations of more than 30 % are marked.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..common.machine import grow_heap, in_child, keep_freed_memory
from ..common.paths import TWO_CORES
from ..common.report import markdown, write
from ..common.timing import Timing, by_turns
from ..common.tuner_steps import TunerStep
from .flop_model import OWN_OPS, flops, terms
from .sweeps import (
    QUICK,
    RUNGS,
    SWEEPS,
    Sweep,
    differences,
    make_steps,
    peak_bytes,
)
from .sweeps import sizes as sizes_of
from .table import lines

RESULT = TWO_CORES / "growth.json"
# FLOPs of a step: about one minute, about four minutes
LIMITS = {"eager": 8e12, "fastprompt": 5e13}
LONG = 10.0  # seconds; slower steps are timed once
LARGEST = 10 << 30  # bytes of heap allocated before anything is timed
NEAR = 0.3  # largest relative deviation from the prediction that is not marked
Steps = dict[tuple[str, int], TunerStep]


def exponents(x: Sequence[float], y: Sequence[float]) -> dict[str, Any]:
    """Return the slopes of ``log y`` over ``log x``: of a least-squares fit, and between neighbors.

    Args:
        x: ascending; a single point has no slope.
    """
    if len(x) < 2:
        return {"fit": None, "local": []}
    log_x, log_y = np.log(x), np.log(y)
    local = np.diff(log_y) / np.diff(log_x)
    return {"fit": float(np.polyfit(log_x, log_y, 1)[0]), "local": local.tolist()}


def middle(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the point that predictions are scaled to."""
    return points[len(points) // 2]


def check_prediction(points: Sequence[dict[str, Any]]) -> None:
    """Add to each point the seconds predicted from its FLOPs and the middle point's rate."""
    anchor = middle(points)
    rate = anchor["flops_model"] / anchor["seconds"]["median"]
    for point in points:
        predicted = point["flops_model"] / rate
        off = point["seconds"]["median"] / predicted - 1
        scale = {"scaled_here": point is anchor, "predicted_seconds": predicted}
        point |= {**scale, "deviation": off, "within_30_percent": abs(off) <= NEAR}


def build(sweep: Sweep, limits: Mapping[str, float]) -> tuple[Steps, list[dict[str, Any]]]:
    """Create the sweep's steps by implementation and size; list the skipped ones with reasons."""
    steps: Steps = {}
    left_out = []
    for size, point in sweep.points().items():
        fast = make_steps(["fastprompt"], point)["fastprompt"]
        for rung in RUNGS:
            # from the fast step's sizes: building an eager step for many classes takes long
            work = flops(dataclasses.replace(sizes_of(fast), eager=rung == "eager"))
            if work > limits[rung]:
                why = f"{work / 1e12:.1f} TFLOP a step, above {limits[rung] / 1e12:g}"
                left_out.append({"rung": rung, sweep.name: size, "reason": why})
            else:
                own = fast if rung == fast.rung else make_steps([rung], point)[rung]
                steps[rung, size] = own
    return steps, left_out


def seconds(steps: Steps, rounds: int) -> dict[tuple[str, int], Timing]:
    """Time each step once, then the short ones again in interleaved rounds.

    The first run counts: the equality check has run all code before, and allocating memory for the
    first time affects one round of three, not their median.
    """
    first = {}
    for key, step in steps.items():
        began = time.perf_counter()
        step()
        first[key] = time.perf_counter() - began
    names = {f"{rung} {size}": (rung, size) for rung, size in steps}
    short = {name: steps[key] for name, key in names.items() if first[key] < LONG}
    more = by_turns(short, rounds - 1, warmup=0) if short and rounds > 1 else {}
    return {
        key: Timing((first[key], *(more[name].seconds if name in more else ())))
        for name, key in names.items()
    }


def describe(step: TunerStep, timing: Timing) -> dict[str, Any]:
    """Return a point's seconds, and its FLOPs by the formula."""
    shape = sizes_of(step)
    return {
        "seconds": {**timing.as_dict(), "data": list(timing.seconds)},
        "flops_model": flops(shape),
        "flops_by_term": terms(shape),
        "class_chunk": step.tuner.model.class_chunk,
    }


def counted(name: str, size: int, step: TunerStep) -> dict[str, Any]:
    """Return the FLOPs that torch counts at one point, and the formula's ratio to them."""
    found = step.flops()
    return {name: size, "flops": found, "model": flops(sizes_of(step), own_ops=False) / found}


def measure_sweep(
    sweep: Sweep, rounds: int, threads: int, memory: bool, limits: Mapping[str, float] = LIMITS
) -> dict[str, Any]:
    """Check the agreement at the sweep's second point, then measure all points."""
    began = time.perf_counter()
    points = sweep.points()
    # not the first: the router of a one-prompt mixture has no gradient, which proves nothing
    gap = differences(points[sweep.values[1]])["fastprompt"]
    steps, left_out = build(sweep, limits)
    timings = seconds(steps, rounds)
    found: dict[str, list[dict[str, Any]]] = {rung: [] for rung in RUNGS}
    for (rung, size), step in steps.items():
        found[rung].append({sweep.name: size, **describe(step, timings[rung, size])})
    counts = {}
    for rung, of in found.items():
        if of:
            size = middle(of)[sweep.name]
            counts[rung] = counted(sweep.name, size, steps[rung, size])
    steps.clear()
    if memory:
        for rung, size in timings:
            place = next(p for p in found[rung] if p[sweep.name] == size)
            place["peak_bytes"] = in_child(peak_bytes, rung, points[size], threads)
    return {
        "varies": sweep.name,
        "fixed": sweep.fixed(),
        "largest_error_float64": max(gap.values()),
        "points": {rung: of_rung for rung, of_rung in found.items() if of_rung},
        "counted": counts,
        "left_out": left_out,
        "exponents": {rung: summary(sweep.name, of) for rung, of in found.items() if of},
        "took_seconds": round(time.perf_counter() - began, 1),
    }


def summary(name: str, points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return exponents of seconds, FLOPs and memory; add predictions (`check_prediction`)."""
    check_prediction(points)
    x = [point[name] for point in points]
    ys = {
        "seconds": [point["seconds"]["median"] for point in points],
        "flops_model": [point["flops_model"] for point in points],
    }
    if all("peak_bytes" in point for point in points):
        ys["peak_bytes"] = [point["peak_bytes"] for point in points]
    return {what: exponents(x, y) for what, y in ys.items()}


def for_plot(sweep: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return seconds and peak memory against the number of classes, by implementation."""
    return {
        rung: [
            {
                "classes": point["classes"],
                "seconds": point["seconds"]["median"],
                "peak_bytes": point.get("peak_bytes"),
            }
            for point in points
        ]
        for rung, points in sweep["points"].items()
    }


def measure(
    sweeps: str | None = None,
    quick: bool = False,
    rounds: int = 3,
    threads: int = 2,
    memory: bool = True,
    out: Path = RESULT,
) -> None:
    """Measure, write the file after each sweep, print the table.

    Args:
        sweeps: comma-separated names, such as ``batch,depth``; the file keeps its others. Default:
            all.
        quick: small sizes on the bundled model, as a trial run.
        rounds: timed rounds of steps that take less than ten seconds; slower steps are timed once.
        threads: torch's threads.
        memory: also measure the peak memory of the sweep over classes.
        out: the result file.
    """
    known = {sweep.name: sweep for sweep in (QUICK if quick else SWEEPS)}
    chosen = sweeps.split(",") if sweeps else list(known)
    if unknown := set(chosen) - set(known):
        raise SystemExit(f"unknown sweep {sorted(unknown)[0]!r}; choose from {', '.join(known)}")
    torch.set_num_threads(threads)
    kept = keep_freed_memory()
    if kept:
        grow_heap(0 if quick else LARGEST)
    result = json.loads(out.read_text("utf-8")) if sweeps and out.exists() else {"sweeps": {}}
    for name in chosen:
        found = measure_sweep(known[name], rounds, threads, memory and name == "classes")
        result["sweeps"][name] = {"freed_memory_kept": kept, **found}
        if name == "classes":
            result["cost_against_classes"] = for_plot(found)
        about = {"limits": LIMITS, "own_ops": list(OWN_OPS)}
        write(out, {**result, **about})
    show(out)


def show(out: Path = RESULT) -> None:
    """Print the file's table."""
    print(markdown(*lines(json.loads(out.read_text("utf-8")))))
