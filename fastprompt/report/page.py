"""The HTML page: values for its template."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..data.seen import seen_by
from . import classes, figures, pictures, settings
from .comparison import (
    Column,
    Method,
    Together,
    columns_of,
    common_radius,
    path_words,
    radius,
)
from .seeds import Group
from .tables import caption, distrust


@dataclass(frozen=True)
class Shown:
    """A cell of the headline table, in per cent; ``notes`` are numbers of reasons for distrust.

    Of several seeds: mean, range, standard deviation, and in ``of`` how many have the cell, if not
    all do.
    """

    value: float
    low: float
    high: float
    notes: list[int]
    std: float | None
    of: str


@dataclass(frozen=True)
class Summary:
    """Clean accuracy of a method, and its robust accuracy under all attacks at ``radius``.

    ``under`` names these attacks. Of several seeds, these are means, ``interval`` is the range, and
    ``std`` and ``clean_std`` are standard deviations.
    """

    label: str
    about: str
    clean: float | None
    clean_std: float | None
    robust: float | None
    interval: tuple[float, float]
    std: float | None
    radius: str
    under: str
    trusted: bool


def render(template: str, *folders: Path, heat: bool, **values: Any) -> str:
    """Render a page in the style of the reports.

    Args:
        template: file name, here or in ``folders``.
        heat: whether the page has a heat map.
    """
    environment = Environment(
        loader=FileSystemLoader([Path(__file__).parent, *folders]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["share"] = lambda value: f"{value:.1f}"
    environment.filters["count"] = lambda value: f"{value:.1f}".removesuffix(".0")
    # Markup: the page must hold the very text that the hash in its policy is of
    style = Markup(environment.get_template("style.css.j2").render(heat=heat))
    mark = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment.get_template(template).render(style=style, style_hash=mark, **values)


def page_text(groups: Sequence[Group], methods: Sequence[Method]) -> str:
    """Render the page; sections without content are omitted."""
    columns = columns_of(methods)
    reasons = distrust(methods)
    eps = common_radius(methods)
    names = ", ".join(group.label for group in groups)
    routings = classes.routings(methods)
    return render(
        "page.html.j2",
        heat=bool(routings),
        title=f"Robust accuracy: {names}",
        names=names,
        caption=caption(methods),
        seen=_seen(groups),
        reasons=reasons,
        failed=sum(not _trusted(m) for m in methods),
        skipped=sum(s["verdict"] == "skipped" for m in methods for s in m.sanity),
        unchecked=[m.label for m in methods if not m.sanity],
        summaries=_summaries(methods, eps),
        common=eps is not None,
        apart=_apart(methods, eps),
        headline=_headline(methods, columns, reasons),
        eps_plots=figures.against_eps(methods),
        step_plots=figures.against_steps(methods),
        parts=figures.stages(methods),
        seeds=_seeds(methods, columns),
        unknown_data=[g.label for g in groups if len(g.runs) > 1 and not g.data_known],
        tuning_plots=figures.tuning(groups, methods),
        class_tables=classes.class_tables(methods, eps),
        chance={"level": f"{100 * classes.LEVEL:g}", "draws": classes.DRAWS},
        grids=pictures.grids(methods, eps),
        routings=routings,
        corrections=[p for m in methods if (p := figures.corrections(m)) is not None],
        calibrations=_calibrations(methods),
        sanity=[(m.label, m.sanity) for m in methods if m.sanity],
        settings=settings.settings(groups),
    )


def _seen(groups: Sequence[Group]) -> list[str]:
    """Return what bundled models have seen of the evaluated data in their pre-training."""
    lines = [
        seen_by(run.model, source.evaluation.data.get("name") or "")
        for group in groups
        for run in group.runs
        for source in run.sources
    ]
    return list(dict.fromkeys(filter(None, lines)))


def _trusted(method: Method) -> bool:
    return not method.failed and all(c.row["trusted"] for c in method.cells.values())


def _headline(
    methods: Sequence[Method], columns: Sequence[Column], reasons: Sequence[str]
) -> dict[str, Any]:
    """Return the table's columns by radius, its cells, and its orientation."""
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
        # the longer dimension becomes rows, since phones are narrow
        "attacks_down": len(columns) >= len(methods),
    }


def _cells(methods: Sequence[Method], column: Column, reasons: Sequence[str]) -> list[Shown | None]:
    out: list[Shown | None] = []
    for method in methods:
        if column not in method.cells:
            out.append(None)
            continue
        cell = method.cells[column]
        row, seeds = cell.row, len(method.members)
        where = f" at {column.radius}" if column.eps else ""
        texts = [f"{method.label}, {column.attack}{where}: {why}" for why in row["reasons"]]
        notes = [reasons.index(text) + 1 for text in dict.fromkeys(texts)]
        low, high = row["interval"]
        of = f"{len(cell.each)} of {seeds} seeds" if seeds and len(cell.each) < seeds else ""
        out.append(
            Shown(100 * row["accuracy"], 100 * low, 100 * high, notes, _std(method, row), of)
        )
    return out


def _seeds(methods: Sequence[Method], columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Return, for each method of several seeds, the accuracies of each seed in per cent."""
    return [
        {
            "label": method.label,
            "names": method.names,
            "rows": [
                {
                    "attack": k.attack,
                    "path": path_words(k.path),
                    "radius": k.radius,
                    "values": [
                        100 * m.cells[k].row["accuracy"] if k in m.cells else None
                        for m in method.members
                    ],
                }
                for k in columns
                if k in method.cells
            ],
        }
        for method in methods
        if method.members
    ]


def _check_notes(method: Method, reasons: Sequence[str]) -> list[int]:
    texts = [f"{method.label}, {s['check']}: {s['reason']}" for s in method.failed]
    return sorted({reasons.index(text) + 1 for text in texts})


def _calibrations(methods: Sequence[Method]) -> list[dict[str, Any]]:
    """Return, for each calibrated model, its temperature, and its errors in per cent."""
    return [
        {
            "label": method.label,
            "temperature": f"{found['temperature']:.4g}",
            "n": found["n"],
            "rows": [
                {
                    "attack": row["attack"],
                    "radius": radius(row["eps"]) if row["eps"] else "",
                    "n": row["n"],
                    "errors": [100 * row["before"], 100 * row["after"]],
                }
                for row in found["rows"]
            ],
        }
        for method in methods
        for source in method.first.sources
        if (found := source.evaluation.calibration.get(method.model))
    ]


def _about(method: Method) -> str:
    """Describe the input defenses of the model; empty without defenses."""
    defenses = method.facts.get("defenses") or []
    return "behind " + ", ".join(map(str, defenses)) if defenses else ""


def _summaries(methods: Sequence[Method], eps: float | None) -> list[Summary]:
    """Return a card per method at the common radius ``eps``, or at its own radius if None."""
    out = []
    for method in methods:
        clean, best = method.clean, method.strongest(eps)
        std: float | None = None
        robust, interval, at, under = None, (0.0, 0.0), "", ""
        if best is not None:
            own = best.row["eps"]
            over = best.row["std"] if method.members else None
            alone = Together(best.row["accuracy"], best.row["interval"], 1, over)
            share, (low, high), count, std = method.together(own) or alone
            robust, interval = 100 * share, (100 * low, 100 * high)
            attacks = [_words(k) for k in _attacks(method, own)]
            several = f"all of {count} attacks" if count > 2 else " and ".join(attacks)
            at, under = radius(own), several if count > 1 else best.row["attack"]
        out.append(
            Summary(
                label=method.label,
                about=_about(method),
                clean=None if clean is None else 100 * clean["accuracy"],
                clean_std=None if clean is None else _std(method, clean),
                robust=robust,
                interval=interval,
                std=None if std is None else 100 * std,
                radius=at,
                under=under,
                trusted=_trusted(method),
            )
        )
    return out


def _std(method: Method, row: Mapping[str, Any]) -> float | None:
    """Return the standard deviation over the seeds in per cent; None for one seed."""
    return 100 * row["std"] if method.members and row["std"] is not None else None


def _attacks(method: Method, eps: float | None) -> list[tuple[str, str]]:
    """Return names and paths of the attacks at a radius."""
    return [(k.attack, k.path) for k in method.attacked() if k.eps == eps]


def _words(attack: tuple[str, str]) -> str:
    name, path = attack
    return name if path == "adaptive" or "@" in name else f"{name} ({path_words(path)})"


def _apart(methods: Sequence[Method], eps: float | None) -> list[str]:
    """Return the reasons why the cards can't be compared."""
    attacked = [m for m in methods if m.radii]
    out = []
    if attacked and eps is None:
        out.append("No radius is common to all models: each card uses its own radius.")
    elif len({frozenset(_attacks(m, eps)) for m in attacked}) > 1:
        out.append(
            f"At ε = {radius(eps or 0.0)} the models were evaluated under different attacks."
        )
    if len({frozenset(s.images for s in m.sources) for m in methods}) > 1:
        out.append("The models were evaluated on different images.")
    return out
