"""Rungs of one group: they agree, they take turns, and pytest-benchmark is told what they took.

pytest-benchmark times one test after the other. Here all rungs of a group are timed in one go, each
once a round, so that what else the machine does meets all of them alike; each rung's test then
replays its own seconds on a clock that `ReplayClock` turns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .timing import Timing, by_turns, count_flops, gate, ratio

Run = Callable[[], object]


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


@dataclass(frozen=True)
class Group:
    """What is timed.

    Attributes:
        rungs: by name, slowest first.
        results: by rung, what must agree; within ``limit``, norm-relative.
        rounds: that count.
        warmup: rounds in front of them.
        baseline: that ratios are of.
        size: shapes and settings, for the record.
    """

    rungs: Mapping[str, Run]
    results: Mapping[str, Mapping[str, Tensor]]
    rounds: int = 5
    warmup: int = 1
    baseline: str = "eager"
    limit: float = 1e-4
    size: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """What a group took."""

    group: Group
    differences: Mapping[str, Mapping[str, float]]
    flops: Mapping[str, int]
    timings: Mapping[str, Timing]

    def about(self, rung: str) -> dict[str, Any]:
        """A rung's ``extra_info``."""
        base, timing = self.group.baseline, self.timings[rung]
        speed = ratio(self.timings, base, rung)
        lower, upper = timing.quartiles
        return {
            "rung": rung,
            f"ratio_to_{base}": speed["medians"],
            "ratio_range": [speed["least"], speed["most"]],
            "ceiling": self.flops[base] / max(1, self.flops[rung]),
            "flops": self.flops[rung],
            "quartiles": [lower, upper],
            "largest_error": max(self.differences.get(rung, {"": 0.0}).values()),
            **self.group.size,
        }


def measure(group: Group) -> Measured:
    """Agreement before anything is timed, FLOPs, seconds by turns."""
    differences = gate(group.results, group.baseline, group.limit)
    flops = {name: count_flops(run) for name, run in group.rungs.items()}
    timings = by_turns(group.rungs, group.rounds, group.warmup)
    return Measured(group, differences, flops, timings)


def replay(benchmark: Any, measured: Measured, rung: str) -> None:
    """Tell pytest-benchmark, whose timer is ``CLOCK.now``, what a rung took in each round."""
    seconds = iter(measured.timings[rung].seconds)
    benchmark.extra_info |= measured.about(rung)
    benchmark.pedantic(
        CLOCK.advance,
        setup=lambda: ((next(seconds),), {}),
        rounds=len(measured.timings[rung].seconds),
    )
