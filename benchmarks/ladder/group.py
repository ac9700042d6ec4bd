"""Rungs of one group: they agree, they take turns, and pytest-benchmark is told what they took.

pytest-benchmark times one test after the other. Here all rungs of a group are timed in one go, each
once a round, so that what else the machine does meets all of them alike; each rung's test then
replays its own seconds on a clock that `replay` turns.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from ..common.gpu_timing import event_turns, peak_bytes, under_tf32
from ..common.limits import Limit, copying, multiplying
from ..common.machine import clocks_now
from ..common.sizes import LEAST_ROUNDS, ON_GPU
from ..common.timing import (
    EXACT,
    TOLERANCE,
    RungsDifferError,
    Timing,
    by_turns,
    count_flops,
    gate,
    ratio,
)

Run = Callable[[], object]
EAGER, LIMIT, CAREFUL = "eager", "limit", ("eager-careful", "compiled")
# bfloat16, on a GPU, is shown more than limited: that its rungs are the same mathematics is shown
# there in float32 and float64, by `benchmarks.gpu`
TOLERANCES = {torch.float32: TOLERANCE, torch.bfloat16: 0.1}
ROUNDED = 1e-2  # more than that is no rounding in float32


@dataclass(frozen=True)
class Group:
    """What is timed.

    Attributes:
        rungs: by name, slowest first.
        results: by rung, what must agree with the eager rung's (the baseline's where there is
            none), norm-relative within ``tolerance``: by default that of the rung's dtype.
        dtypes: of rungs that are not in float32.
        exact: as ``results``, in float64. Where a rung is beyond its tolerance, rounding may have
            had a refiner's ReLU on one side in it and on the other in eager, and it need not be
            the fast one that is off: then these must agree, within `EXACT`, and ``results`` still
            roughly, within `ROUNDED`.
        check: looks at what the timed runs found, and raises: for what has no result before a whole
            run, which would take as long again.
        rounds: that count.
        warmup: rounds in front of them.
        once: rungs so long that they have one round, unless more are asked for.
        baseline: that ratios are of; where the eager rung is left out, another.
        flops: of a rung; by default counted in a run.
        inside: of a rung, a context in which FLOPs are seen; with True, one in which memory is, and
            what is compiled stays so. See `clips.step_by_step`.
        moved: bytes that the operation reads and writes at least; its limit is then a copy's
            bandwidth, else the rate of a matrix product.
        size: shapes and settings, for the record.
    """

    rungs: Mapping[str, Run]
    results: Mapping[str, Mapping[str, Tensor]]
    exact: Callable[[], Mapping[str, Mapping[str, Tensor]]] | None = None
    check: Callable[[], None] | None = None
    rounds: int = 5
    warmup: int = 1
    once: tuple[str, ...] = ()
    baseline: str = EAGER
    tolerance: float | None = None
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    flops: Callable[[str], int] | None = None
    inside: Callable[[str, bool], AbstractContextManager[None]] = lambda *_: nullcontext()
    moved: int | None = None
    size: Mapping[str, Any] = field(default_factory=dict)

    def dtype(self, rung: str) -> torch.dtype:
        """What a rung computes in."""
        return self.dtypes.get(rung, torch.float32)

    @property
    def fastest(self) -> str:
        """The last rung."""
        return next(reversed(self.rungs))

    def differences(self) -> dict[str, dict[str, float]]:
        """How far every rung is from the baseline.

        Raises:
            RungsDifferError: a rung is beyond its tolerance, and not by rounding alone.
        """
        against = EAGER if EAGER in self.results else self.baseline
        limits = {r: self.tolerance or TOLERANCES[self.dtype(r)] for r in self.results}
        try:
            return gate(self.results, against, limits)
        except RungsDifferError:
            if self.exact is None:
                raise
        gate(self.exact(), against, EXACT)
        return gate(self.results, against, {r: max(ROUNDED, most) for r, most in limits.items()})

    def count(self, rung: str) -> int:
        """FLOPs of a rung."""
        with self.inside(rung, False):
            return self.flops(rung) if self.flops else count_flops(self.rungs[rung])

    def peak(self, rung: str) -> int:
        """Bytes that a rung allocates on a GPU."""
        with self.inside(rung, True):
            return peak_bytes(self.rungs[rung])


@dataclass(frozen=True)
class Spec:
    """A group before anything of it is built.

    Attributes:
        name: ``<layer>/<what>/<size>``.
        build: makes the group, of all ``rungs``.
        left_out: rungs that are not timed at this size, each with the reason.
    """

    name: str
    build: Callable[[], Group]
    rungs: tuple[str, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """What a group took; nothing of the group itself, whose memory the next one needs."""

    baseline: str
    size: Mapping[str, Any]
    differences: Mapping[str, Mapping[str, float]]
    flops: Mapping[str, int]
    timings: Mapping[str, Timing]
    peaks: Mapping[str, int]
    limit: Limit
    dtypes: Mapping[str, torch.dtype]
    clocks: str | None

    def about(self, rung: str) -> dict[str, Any]:
        """A rung's ``extra_info``."""
        base, timing, flops = self.baseline, self.timings[rung], self.flops
        speed = ratio(self.timings, base, rung)
        work = self.limit.work(flops[rung]) if self.dtypes[rung] == self.limit.dtype else None
        rate = self.limit.amount / self.timings[LIMIT].median
        return {
            "rung": rung,
            "baseline": base,
            "dtype": str(self.dtypes[rung]).removeprefix("torch."),
            f"ratio_to_{base}": speed["medians"],
            "ratio_range": [speed["least"], speed["most"]],
            "ceiling": flops[base] / flops[rung] if flops[rung] else None,
            "flops": flops[rung],
            "quartiles": list(timing.quartiles),
            "limit": self.limit.name if work else None,
            "share_of_limit": work / timing.median / rate if work else None,
            "largest_error": max(self.differences.get(rung, {"": 0.0}).values()),
            "peak_bytes": self.peaks.get(rung),
            "clocks_after": self.clocks,
            **self._images(timing.median),
            **self.size,
        }

    def _images(self, seconds: float) -> dict[str, float]:
        images = self.size.get("images")
        return {"images_per_second": images / seconds} if images else {}


def measure(group: Group) -> Measured:
    """Agreement before anything is timed, seconds by turns, memory on a GPU, then FLOPs."""
    differences = group.differences()
    dtypes = {name: group.dtype(name) for name in group.rungs}
    fastest = dtypes[group.fastest]
    limit = multiplying(fastest) if group.moved is None else copying(fastest, group.moved)
    rungs = {**_as_allowed(group), LIMIT: limit.run}
    rounds = max(group.rounds, LEAST_ROUNDS)
    once = () if LEAST_ROUNDS > 1 else group.once
    timings, peaks, clocks = _by_turns(rungs, rounds, group.warmup, once), {}, None
    if group.check:
        group.check()
    if ON_GPU:
        clocks = clocks_now()
        peaks = {name: group.peak(name) for name in group.rungs}
    # counted last: what towers derive when they are first called must not be made while counting
    flops = {name: group.count(name) for name in group.rungs}
    return Measured(
        group.baseline, group.size, differences, flops, timings, peaks, limit, dtypes, clocks
    )


def _as_allowed(group: Group) -> dict[str, Run]:
    """The rungs; the careful ones, in bfloat16 by autocast, with TF32 for what is left."""
    careful = [r for r in CAREFUL if group.dtype(r) == torch.bfloat16]
    return {n: under_tf32(True, run) if n in careful else run for n, run in group.rungs.items()}


def _by_turns(
    rungs: Mapping[str, Run], rounds: int, warmup: int, once: tuple[str, ...]
) -> dict[str, Timing]:
    if not ON_GPU:
        return by_turns(rungs, rounds, warmup, once=once)
    return event_turns(rungs, rounds, max(warmup, 2), once=once)


_measured: dict[str, Measured | Exception] = {}


def measured(spec: Spec) -> Measured:
    """What a group took: measured when the first of its rungs asks; an error is for all of them."""
    if spec.name not in _measured:
        try:
            _measured[spec.name] = measure(spec.build())
        except Exception as error:  # building it again for each rung would fail as often
            _measured[spec.name] = error
        torch.compiler.reset()  # compiled code holds its models
        gc.collect()
    found = _measured[spec.name]
    if isinstance(found, Exception):
        raise found
    return found


class ReplayClock:
    """A clock that stands still but for `advance`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        """Seconds."""
        return self.seconds

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass."""
        self.seconds += seconds


CLOCK = ReplayClock()


def ladder(specs: Iterable[Spec]) -> pytest.MarkDecorator:
    """Parametrizes a test by ``spec`` and ``rung``; those that are left out are skipped by name."""
    params = []
    for spec in specs:
        for rung in (*spec.rungs, *spec.left_out):
            # the first of its tests takes as long as the whole group
            timeout = pytest.mark.timeout(3600)
            marks = [pytest.mark.benchmark(group=spec.name, timer=CLOCK.now), timeout]
            if rung in spec.left_out:
                why = f"{spec.name}: {rung} is left out: {spec.left_out[rung]}"
                marks.append(pytest.mark.skip(reason=why))
            params.append(pytest.param(spec, rung, id=f"{spec.name}-{rung}", marks=marks))
    return pytest.mark.parametrize(("spec", "rung"), params)


def replay(benchmark: Any, spec: Spec, rung: str) -> None:
    """Tell pytest-benchmark, whose timer is ``CLOCK.now``, what a rung took in each round."""
    found = measured(spec)
    seconds = iter(found.timings[rung].seconds)
    benchmark.extra_info |= found.about(rung)
    benchmark.pedantic(
        CLOCK.advance,
        setup=lambda: ((next(seconds),), {}),
        rounds=len(found.timings[rung].seconds),
    )
