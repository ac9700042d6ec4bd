"""Summarize evaluations over several seeds: mean, range, standard deviation."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from .result import Evaluation
from .text_table import text_table


def spread(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Return one row per model, attack and eps.

    Returns:
        ``model``, ``attack``, ``path``, ``eps``, ``mean``, ``low``, ``high``, ``std`` (sample
        standard deviation, 0 for one evaluation), ``accuracies`` in the order given, ``trusted``
        (whether all are).

    Raises:
        ValueError: no evaluations, or evaluations of different models, attacks or radii.
    """
    if not evaluations:
        raise ValueError("evaluations must not be empty")
    keys = ("model", "attack", "path", "eps")
    plans = [[tuple(r[k] for k in keys) for r in e.rows] for e in evaluations]
    if any(plan != plans[0] for plan in plans):
        raise ValueError("evaluations must have the same models, attacks and radii")
    out = []
    for same in zip(*(e.rows for e in evaluations), strict=True):
        out.append(
            {
                **{k: same[0][k] for k in keys},
                **summary([row["accuracy"] for row in same]),
                "trusted": all(row["trusted"] for row in same),
            }
        )
    return out


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Return ``mean``, ``low``, ``high``, ``std`` and ``accuracies`` of one row of `spread`."""
    return {
        "mean": statistics.fmean(values),
        "low": min(values),
        "high": max(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
        "accuracies": list(values),
    }


def spread_table(
    rows: Sequence[dict[str, Any]], reasons: Iterable[str] = (), notes: Iterable[str] = ()
) -> str:
    """Format `spread` as text, as `text_table` does."""
    cells: dict[tuple[str, str, float], dict[str, str]] = {}
    for r in rows:
        mean, low, high = (100 * r[k] for k in ("mean", "low", "high"))
        mark = "" if r["trusted"] else " !"
        text = f"{mean:5.1f} % ({low:.1f} to {high:.1f}){mark}"
        cells.setdefault((r["attack"], r["path"], r["eps"]), {})[r["model"]] = text
    return text_table(cells, reasons, notes)
