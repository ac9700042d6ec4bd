"""Formats the table of `benchmarks.growth`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NAMES = {
    "classes": "classes",
    "n_prompts": "prompts of the mixture",
    "batch": "images",
    "depth": "layers with prompts",
    "steps": "steps of PGD",
}
HEAD = (
    "what grows",
    "rung",
    "seconds",
    "exponent",
    "between neighbors",
    "exponent by FLOPs",
    "furthest from the FLOP model",
    "beyond 30 %",
)


def lines(result: Mapping[str, Any]) -> tuple[Sequence[str], list[list[str]]]:
    """Return head and rows: one for each sweep and implementation, one for each skipped size."""
    rows = []
    for name, sweep in result["sweeps"].items():
        for rung, points in sweep["points"].items():
            rows.append([_what(name, sweep, points), rung, *_figures(name, sweep, rung, points)])
        for left in sweep["left_out"]:
            blank = ["" for _ in HEAD[3:]]
            what = f"{NAMES[name]} {left[name]:,}"
            rows.append([what, left["rung"], f"left out: {left['reason']}", *blank])
    return HEAD, rows


def _what(name: str, sweep: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> str:
    fixed = sweep["fixed"]
    values = " -> ".join(f"{point[name]:,}" for point in points)
    return f"{NAMES[name]} {values} ({fixed['method'].upper()}, {fixed['model']})"


def _figures(
    name: str, sweep: Mapping[str, Any], rung: str, points: Sequence[Mapping[str, Any]]
) -> list[str]:
    found = sweep["exponents"][rung]
    worst = max(points, key=lambda point: abs(point["deviation"]))
    far = [f"{point[name]:,}" for point in points if not point["within_30_percent"]]
    return [
        " -> ".join(f"{point['seconds']['median']:.3g}" for point in points),
        _exponent(found["seconds"]["fit"]),
        ", ".join(map(_exponent, found["seconds"]["local"])),
        _exponent(found["flops_model"]["fit"]),
        f"{100 * worst['deviation']:+.0f} % at {worst[name]:,}",
        ", ".join(far) or "none",
    ]


def _exponent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
