"""The page: what its template is given."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from . import classes, figures, pictures, settings
from .gather import Run
from .methods import Column, Method, columns_of, path_words, radius
from .tables import caption, distrust


@dataclass(frozen=True)
class Shown:
    """A cell of the headline table, in per cent; ``notes`` number the reasons against it."""

    value: float
    low: float
    high: float
    notes: list[int]


@dataclass(frozen=True)
class Summary:
    """A method in two numbers: clean, and standing under every attack of one radius."""

    label: str
    about: str
    clean: float | None
    robust: float | None
    interval: tuple[float, float]
    under: str
    trusted: bool


def page_text(runs: Sequence[Run], methods: Sequence[Method]) -> str:
    """The whole page; sections without anything to show are left out."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["share"] = lambda value: f"{value:.1f}"
    columns = columns_of(methods)
    reasons = distrust(methods)
    names = ", ".join(run.name for run in runs)
    return environment.get_template("page.html.j2").render(
        title=f"Robust accuracy: {names}",
        names=names,
        caption=caption(methods),
        reasons=reasons,
        failed=sum(not _trusted(m) for m in methods),
        skipped=sum(s["verdict"] == "skipped" for m in methods for s in m.sanity),
        unchecked=[m.label for m in methods if not m.sanity],
        summaries=_summaries(methods),
        headline=_headline(methods, columns, reasons),
        eps_plots=figures.against_eps(methods),
        step_plots=figures.against_steps(methods),
        parts=figures.parts(methods),
        tuning_plots=figures.tuning(runs, methods),
        class_tables=classes.class_tables(methods),
        grids=pictures.grids(methods),
        routings=classes.routings(methods),
        corrections=[p for m in methods if (p := figures.corrections(m)) is not None],
        sanity=[(m.label, m.sanity) for m in methods if m.sanity],
        settings=settings.settings(runs),
    )


def _trusted(method: Method) -> bool:
    return not method.failed and all(c.row["trusted"] for c in method.cells.values())


def _headline(
    methods: Sequence[Method], columns: Sequence[Column], reasons: Sequence[str]
) -> dict[str, Any]:
    """The table's columns by radius, its cells, and which way round it is."""
    groups = []
    for (clean, eps), group in groupby(columns, key=lambda k: (k.attack == "clean", k.eps)):
        shown = [
            {"attack": k.attack, "path": path_words(k.path), "cells": _cells(methods, k, reasons)}
            for k in group
        ]
        groups.append({"clean": clean, "radius": radius(eps), "columns": shown})
    return {
        "groups": groups,
        "methods": [
            {"label": m.label, "about": _about(m), "notes": _check_notes(m, reasons)}
            for m in methods
        ],
        # the longer side goes down the page: a phone is narrow
        "attacks_down": len(columns) >= len(methods),
    }


def _cells(methods: Sequence[Method], column: Column, reasons: Sequence[str]) -> list[Shown | None]:
    out: list[Shown | None] = []
    for method in methods:
        if column not in method.cells:
            out.append(None)
            continue
        row = method.cells[column].row
        where = f" at {column.radius}" if column.eps else ""
        texts = [f"{method.label}, {column.attack}{where}: {why}" for why in row["reasons"]]
        notes = [reasons.index(text) + 1 for text in dict.fromkeys(texts)]
        low, high = row["interval"]
        out.append(Shown(100 * row["accuracy"], 100 * low, 100 * high, notes))
    return out


def _check_notes(method: Method, reasons: Sequence[str]) -> list[int]:
    texts = [f"{method.label}, {s['check']}: {s['reason']}" for s in method.failed]
    return sorted({reasons.index(text) + 1 for text in texts})


def _about(method: Method) -> str:
    """What stands in front of the model, if something does."""
    defences = method.facts.get("defences") or []
    return "behind " + ", ".join(map(str, defences)) if defences else ""


def _summaries(methods: Sequence[Method]) -> list[Summary]:
    out = []
    for method in methods:
        clean = method.clean
        best = method.strongest()
        robust, interval, under = None, (0.0, 0.0), ""
        if best is not None:
            eps = best.row["eps"]
            (share, (low, high), count) = method.together(eps) or (
                best.row["accuracy"],
                best.row["interval"],
                1,
            )
            robust, interval = 100 * share, (100 * low, 100 * high)
            every = f"all {count} attacks" if count > 1 else best.row["attack"]
            under = f"under {every} at {radius(eps)}"
        about = _about(method)
        share_clean = None if clean is None else 100 * clean["accuracy"]
        out.append(
            Summary(method.label, about, share_clean, robust, interval, under, _trusted(method))
        )
    return out
