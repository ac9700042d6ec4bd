"""A group of implementations: equality check, interleaved timing, report to pytest-benchmark.

pytest-benchmark times one test after another. Here all implementations (rungs) of a group are timed
together, each once per round, so that other load affects all equally; the test of each one then
replays its seconds to pytest-benchmark on an artificial clock (see `replay`).
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
# loose for bfloat16: on a GPU `benchmarks.gpu` checks in float32 and float64 that the
# implementations agree there
TOLERANCES = {torch.float32: TOLERANCE, torch.bfloat16: 0.1}
ROUNDED = 1e-2  # larger differences are not float32 rounding
# larger than careful eager code's own times this: not bfloat16 rounding
LOW_ROUNDED = 1.5


@dataclass(frozen=True)
class Group:
    """Implementations that are timed together.

    Attributes:
        rungs: by name, slowest first.
        results: tensors of each implementation that must agree with eager's (with the baseline's if
            there is no eager), norm-relative within ``tolerance``: by default that of the dtype.
        dtypes: of implementations that do not compute in float32.
        exact: returns ``results`` in float64. If a tolerance is exceeded, rounding may have put a
            refiner's ReLU on different sides of zero, which need not be an error of the fast
            implementation: then these must agree within `EXACT`, and ``results`` within `ROUNDED`.
        check: checks the results of the timed runs and raises an error; for groups whose results
            need a whole run, which would take as long again.
        rounds: timed rounds.
        warmup: untimed rounds before them.
        once: slow implementations with one round, unless more are requested.
        baseline: of the ratios; another one if eager is skipped.
        flops: returns an implementation's FLOPs; by default they are counted in a run.
        inside: returns a context in which an implementation's FLOPs are visible; with True, one in
            which its memory is, and compiled code stays enabled. See `clips.step_by_step`.
        moved: least bytes that the operation reads and writes; the limit is then a copy's
            bandwidth, else the rate of a matrix product in the implementation's dtype.
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
        """Return the dtype that an implementation computes in."""
        return self.dtypes.get(rung, torch.float32)

    @property
    def fastest(self) -> str:
        """Name of the last implementation."""
        return next(reversed(self.rungs))

    def differences(self) -> dict[str, dict[str, float]]:
        """Return each implementation's differences from the baseline.

        Raises:
            RungsDifferError: a difference exceeds its tolerance, and not because of rounding alone.
        """
        against = EAGER if EAGER in self.results else self.baseline
        limits = {r: self.tolerance or TOLERANCES[self.dtype(r)] for r in self.results}
        try:
            return gate(self.results, against, limits)
        except RungsDifferError:
            if self.exact is None:
                raise
        gate(self.exact(), against, EXACT)
        return gate(self.results, against, self._rounded(limits, against))

    def _rounded(self, limits: Mapping[str, float], against: str) -> dict[str, float]:
        """Return the limits for implementations that agree exactly in float64."""
        out = {rung: max(ROUNDED, most) for rung, most in limits.items()}
        careful = next((r for r in CAREFUL if r in self.results and r != against), None)
        if careful and self.dtype(careful) == torch.bfloat16:
            apart = gate(self.results, against, float("inf"))[careful]
            for rung in out:
                if self.dtype(rung) == torch.bfloat16:
                    out[rung] = max(out[rung], LOW_ROUNDED * max(apart.values()))
        return out

    def count(self, rung: str) -> int:
        """Return the FLOPs of an implementation."""
        with self.inside(rung, False):
            return self.flops(rung) if self.flops else count_flops(self.rungs[rung])

    def peak(self, rung: str) -> int:
        """Return the peak bytes that an implementation allocates on a GPU."""
        with self.inside(rung, True):
            return peak_bytes(self.rungs[rung])


@dataclass(frozen=True)
class Spec:
    """Description of a group that is not built yet.

    Attributes:
        name: ``<layer>/<what>/<size>``.
        build: creates the group with all ``rungs``.
        left_out: implementations that are skipped at this size, each with the reason.
    """

    name: str
    build: Callable[[], Group]
    rungs: tuple[str, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """Results of a group; holds none of its tensors, so that their memory is freed."""

    baseline: str
    size: Mapping[str, Any]
    differences: Mapping[str, Mapping[str, float]]
    flops: Mapping[str, int]
    timings: Mapping[str, Timing]
    peaks: Mapping[str, int]
    limits: Mapping[torch.dtype, Limit]
    dtypes: Mapping[str, torch.dtype]
    clocks: str | None

    def about(self, rung: str) -> dict[str, Any]:
        """Return the ``extra_info`` of an implementation."""
        base, timing, flops = self.baseline, self.timings[rung], self.flops
        speed = ratio(self.timings, base, rung)
        return {
            "rung": rung,
            "baseline": base,
            "dtype": str(self.dtypes[rung]).removeprefix("torch."),
            f"ratio_to_{base}": speed["medians"],
            "ratio_range": [speed["least"], speed["most"]],
            "ceiling": flops[base] / flops[rung] if flops[rung] else None,
            "flops": flops[rung],
            "quartiles": list(timing.quartiles),
            **self._share_of_limit(rung),
            "largest_error": max(self.differences.get(rung, {"": 0.0}).values()),
            "peak_bytes": self.peaks.get(rung),
            "clocks_after": self.clocks,
            **self._images(timing.median),
            **self.size,
        }

    def _share_of_limit(self, rung: str) -> dict[str, Any]:
        """Compare with the limit of the implementation's dtype, if it applies."""
        dtype = self.dtypes[rung]
        limit = self.limits.get(dtype)
        work = limit.work(self.flops[rung]) if limit else None
        if limit is None or not work:
            return {"limit": None, "share_of_limit": None}
        rate = limit.amount / self.timings[limit_name(dtype)].median
        return {"limit": limit.name, "share_of_limit": work / self.timings[rung].median / rate}

    def _images(self, seconds: float) -> dict[str, float]:
        images = self.size.get("images")
        return {"images_per_second": images / seconds} if images else {}


def measure(group: Group) -> Measured:
    """Check agreement, time interleaved rounds, measure memory on a GPU, count FLOPs."""
    differences = group.differences()
    dtypes = {name: group.dtype(name) for name in group.rungs}
    limits = _limits(group)
    runs = {limit_name(dtype): limit.run for dtype, limit in limits.items()}
    rungs = {**_as_allowed(group), **runs}
    rounds = max(group.rounds, LEAST_ROUNDS)
    once = () if LEAST_ROUNDS > 1 else group.once
    timings, peaks, clocks = _by_turns(rungs, rounds, group.warmup, once), {}, None
    if group.check:
        group.check()
    if ON_GPU:
        clocks = clocks_now()
        peaks = {name: group.peak(name) for name in group.rungs}
    # counted last: towers derive tensors in their first call, which must have values
    flops = {name: group.count(name) for name in group.rungs}
    return Measured(
        group.baseline, group.size, differences, flops, timings, peaks, limits, dtypes, clocks
    )


def limit_name(dtype: torch.dtype) -> str:
    """Return the name under which a dtype's limit is timed."""
    return f"{LIMIT}, {dtype}"


def _limits(group: Group) -> dict[torch.dtype, Limit]:
    """Return the limit of each dtype: a matrix product, or a copy for the fastest rung's dtype."""
    if group.moved is not None:
        fastest = group.dtype(group.fastest)
        return {fastest: copying(fastest, group.moved)}
    return {dtype: multiplying(dtype) for dtype in map(group.dtype, group.rungs)}


def _as_allowed(group: Group) -> dict[str, Run]:
    """Return the implementations; those under bfloat16 autocast also with TF32 allowed."""
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
    """Return a group's results, measured at the first call; every test of it gets its error."""
    if spec.name not in _measured:
        try:
            _measured[spec.name] = measure(spec.build())
        except Exception as error:  # building it again for each test would fail again
            _measured[spec.name] = error
        torch.compiler.reset()  # compiled code keeps its models alive
        gc.collect()
    found = _measured[spec.name]
    if isinstance(found, Exception):
        raise found
    return found


class ReplayClock:
    """A clock that only `advance` moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        """Return the current time in seconds."""
        return self.seconds

    def advance(self, seconds: float) -> None:
        """Advance by ``seconds``."""
        self.seconds += seconds


CLOCK = ReplayClock()


def ladder(specs: Iterable[Spec]) -> pytest.MarkDecorator:
    """Parametrize a test by ``spec`` and ``rung``; those in ``left_out`` are skipped."""
    params = []
    for spec in specs:
        for rung in (*spec.rungs, *spec.left_out):
            # the first test of a group measures the whole group
            timeout = pytest.mark.timeout(3600)
            marks = [pytest.mark.benchmark(group=spec.name, timer=CLOCK.now), timeout]
            if rung in spec.left_out:
                why = f"{spec.name}: {rung} is left out: {spec.left_out[rung]}"
                marks.append(pytest.mark.skip(reason=why))
            params.append(pytest.param(spec, rung, id=f"{spec.name}-{rung}", marks=marks))
    return pytest.mark.parametrize(("spec", "rung"), params)


def replay(benchmark: Any, spec: Spec, rung: str) -> None:
    """Report each round's seconds to pytest-benchmark, whose timer is ``CLOCK.now``."""
    found = measured(spec)
    seconds = iter(found.timings[rung].seconds)
    benchmark.extra_info |= found.about(rung)
    benchmark.pedantic(
        CLOCK.advance,
        setup=lambda: ((next(seconds),), {}),
        rounds=len(found.timings[rung].seconds),
    )
