"""Performance targets on a GPU, with the measurements of `benchmarks.gpu`.

Missing results are shown as "not yet measured".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastprompt._utils.files import read_json

from ..common.report import NOT_YET, markdown

STEP = (
    "NAP's published setting: ViT-B/16, 1,000 classes, batch 32, PGD-5, 16 context tokens, depth 12"
)
ATTACK = "PGD-10, ViT-B/16, batch 256, bfloat16"
# the default on a GPU first, then without `torch.compile`, in case that failed
BF16 = ("fastprompt, bf16, compiled", "fastprompt, bf16")
CONTEXT = "For comparison: the log of NAP's authors reports 5.86 s a step, on an A100."

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Demand:
    """A performance target.

    Attributes:
        what: the measured operation.
        against: the baseline.
        demanded: the target as text.
        task: of `benchmarks.gpu` that measures it.
        measured: formats that task's result; None if it lacks the value.
    """

    what: str
    against: str
    demanded: str
    task: str
    measured: Callable[[Result], str | None]


def _times(slow: str, *fast: str) -> Callable[[Result], str | None]:
    """Return a reader of the speed-up over ``slow`` of the first of ``fast`` in a result."""

    def read(result: Result) -> str | None:
        found = [rung for rung in fast if rung in result]
        if slow not in result or not found:
            return None
        seconds = result[found[0]]["median"]
        return f"{result[slow]['median'] / seconds:.1f}x, {1e3 * seconds:.0f} ms a step"

    return read


def _best_share(result: Result) -> str | None:
    """Return the largest share of the matmul rate among the attack's variants."""
    ways = [way for way in result.values() if isinstance(way, dict) and "matmul_share" in way]
    return f"{100 * max(way['matmul_share'] for way in ways):.0f} %" if ways else None


DEMANDS = (
    Demand(
        f"{STEP}; float32, no TF32",
        "`eager`, the same",
        "4.2x",
        "step",
        _times("eager", "fastprompt"),
    ),
    Demand("the same in bfloat16", "`eager` in float32", "30x", "step", _times("eager", *BF16)),
    Demand(
        "the same in bfloat16",
        "`eager` with TF32",
        "12x",
        "step",
        _times("eager, TF32", *BF16),
    ),
    Demand(
        "the same in bfloat16",
        "`eager-careful`",
        "1.6x",
        "step",
        _times("eager-careful", *BF16),
    ),
    Demand(ATTACK, "the measured bfloat16 matmul rate", "45 %", "attack", _best_share),
)


def results_of(task: str, results: Path) -> list[tuple[str, Result]]:
    """Return (card, result) for each result of a `benchmarks.gpu` task without an error."""
    found = [read_json(path) for path in sorted(results.glob(f"*/gpu-{task}.json"))]
    return [(entry["card"], entry["result"]) for entry in found if "error" not in entry]


def _cell(demand: Demand, results: Path) -> str:
    words = [
        f"{measured} ({card})"
        for card, result in results_of(demand.task, results)
        if (measured := demand.measured(result)) is not None
    ]
    return "; ".join(words) or NOT_YET


def gpu_table(results: Path) -> str:
    """Return a Markdown table of all targets with the measurements on each card."""
    rows = [[d.what, d.against, d.demanded, _cell(d, results)] for d in DEMANDS]
    return f"{markdown(['on a GPU', 'against', 'demanded', 'measured'], rows)}\n\n{CONTEXT}"
