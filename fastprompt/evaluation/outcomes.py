"""Summaries of the recorded outcomes of an evaluation's units."""

from collections.abc import Mapping, Sequence
from typing import Any

from .record import STALLED
from .scoring import Counted


def windows(places: Sequence[int], size: int) -> list[list[int]]:
    return [list(places[i : i + size]) for i in range(0, len(places), size)]


def flags_of(outcomes: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Return the flag of each attacked image, by its place."""
    return {
        place: flag
        for outcome in outcomes
        for place, flag in zip(outcome["places"], outcome["flags"], strict=True)
    }


def passes_of(counted: Counted) -> dict[str, int]:
    return {"forwards": counted.forwards, "gradients": counted.gradients}


def costs(done: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {
        key: sum(outcome[key] for outcome in done) for key in ("forwards", "gradients")
    }
    return {**out, "seconds": round(sum(outcome["seconds"] for outcome in done), 3)}


def histogram(done: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Count the fooled images by the iterate that fooled the model."""
    counts: dict[int, int] = {}
    for outcome in done:
        for at in outcome.get("fell_at", ()):
            if at >= 0:
                counts[at] = counts.get(at, 0) + 1
    return {str(at): counts[at] for at in sorted(counts)}


def nan_reasons(predictions: Sequence[int]) -> list[str]:
    nan = sum(p < 0 for p in predictions)
    return [f"logits are NaN for {nan} of {len(predictions)} images"] if nan else []


def stalled_reasons(
    flags: Sequence[str], attacked: int, done: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Return a reason if over 1 % of the attacked images had no usable gradient."""
    stalled = list(flags).count(STALLED)
    if stalled <= 0.01 * attacked:
        return []
    entries = max(1, sum(outcome["entries"] for outcome in done))
    zero, odd = (sum(outcome[k] for outcome in done) / entries for k in ("zero", "nonfinite"))
    return [
        f"no usable gradient for {stalled} images that seem robust: {zero:.1%} of the gradient "
        f"entries are zero, {odd:.1%} not finite"
    ]
