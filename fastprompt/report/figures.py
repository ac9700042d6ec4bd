"""Plots: accuracy against radius and steps, tuning curves, refiner corrections by layer."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from .comparison import Column, Method, path_words, radius
from .plots import Plot, Series, draw
from .seeds import Group

_TICKS = 7  # with more radii, matplotlib chooses the ticks


def against_eps(methods: Sequence[Method]) -> list[Plot]:
    """Plot accuracy against the radius for each attack run at several radii."""
    attacks = dict.fromkeys((k.attack, k.path) for m in methods for k in m.attacked())
    plots = []
    for attack, path in attacks:
        lines = [
            line
            for style, method in enumerate(methods)
            if (line := _by_eps(method, style, attack, path)) is not None
        ]
        if lines:
            radii = sorted({x for line in lines for x in line.x})
            plots.append(
                draw(
                    f"{attack} ({path_words(path)})",
                    lines,
                    ("radius ε, in 1/255", "accuracy (%)"),
                    percent=True,
                    ticks=radii if len(radii) <= _TICKS else (),
                )
            )
    return plots


def _by_eps(method: Method, style: int, attack: str, path: str) -> Series | None:
    rows = {
        k.eps: c.row for k, c in method.attacked().items() if (k.attack, k.path) == (attack, path)
    }
    if len(rows) < 2:
        return None
    if method.clean is not None:
        rows.setdefault(0.0, method.clean)
    points = sorted(rows.items())
    low, high = ([100 * row["interval"][i] for _, row in points] for i in (0, 1))
    return Series(
        method.label,
        [255 * eps for eps, _ in points],
        [100 * row["accuracy"] for _, row in points],
        style,
        (low, high),
    )


def against_steps(methods: Sequence[Method]) -> list[Plot]:
    """Plot accuracy against the iterates of each attack that records when images are fooled."""
    columns = dict.fromkeys(k for m in methods for k, c in m.cells.items() if c.row.get("fell_at"))
    plots = []
    for column in sorted(columns, key=lambda k: k.eps):
        lines = [
            _by_steps(method, style, method.cells[column].row)
            for style, method in enumerate(methods)
            if column in method.cells and "fell_at" in method.cells[column].row
        ]
        title = f"{column.attack} at {column.radius} ({path_words(column.path)})"
        labels = ("iterates of the attack", "still right (%)")
        plots.append(draw(title, lines, labels, percent=True, steps=True, whole=True))
    return plots


def _by_steps(method: Method, style: int, row: dict[str, Any]) -> Series:
    fell = sorted((int(at), count) for at, count in row["fell_at"].items())
    standing = row["correct"] + row.get("stalled", 0) + sum(count for _, count in fell)
    # the line starts with the clean accuracy; the random start (iterate 0) has the same x
    x, y = [0.0], [100 * standing / row["n"]]
    for at, count in fell:
        standing -= count
        x.append(at)
        y.append(100 * standing / row["n"])
    last = row.get("settings", {}).get("steps")
    if isinstance(last, int) and last > x[-1]:
        x.append(last)
        y.append(y[-1])
    return Series(method.label, x, y, style)


def tuning(groups: Sequence[Group], methods: Sequence[Method]) -> list[Plot]:
    """Plot loss and validation accuracy against the epoch; of several seeds, mean and range."""
    # of a run's models the tuned one is the last, and gives the color
    styles = {s.run: style for style, m in enumerate(methods) for s in m.sources}

    def lines(names: Mapping[str, str]) -> list[Series]:
        return [
            line
            for group in groups
            for key, words in names.items()
            if (line := _curve(group, key, label(group, words), styles[group.runs[0].name]))
        ]

    def label(group: Group, words: str) -> str:
        return ", ".join(filter(None, [group.label if len(groups) > 1 or not words else "", words]))

    plots = []
    if losses := lines({"loss": ""}):
        plots.append(draw("Training loss", losses, ("epoch", "loss"), whole=True))
    if scores := lines({"val_accuracy": "clean", "val_robust": "robust"}):
        labels = ("epoch", "accuracy (%)")
        plots.append(draw("Validation accuracy", scores, labels, percent=True, whole=True))
    return plots


def _curve(group: Group, key: str, label: str, style: int) -> Series | None:
    """Return the mean of the runs at the epochs that all of them have, with the range."""
    found = [
        {row["epoch"]: row[key] for row in run.metrics if isinstance(row.get(key), float)}
        for run in group.runs
    ]
    curves = [curve for curve in found if curve]
    epochs = sorted(set.intersection(*map(set, curves))) if curves else []
    if not epochs:
        return None
    scale = 100 if key.startswith("val_") else 1
    points = [[scale * curve[epoch] for curve in curves] for epoch in epochs]
    band = [min(own) for own in points], [max(own) for own in points]
    return Series(
        label,
        epochs,
        [fmean(own) for own in points],
        style,
        band if len(curves) > 1 else None,
        dashed=key == "val_robust",
    )


def corrections(method: Method) -> Plot | None:
    """Plot the relative size of each refiner's correction, clean and attacked."""
    method = method.first
    found = diagnostics(method).get("refiners")
    if not found or not found["layers"]:
        return None
    lines = [
        Series(words, found["layers"], [100 * value for value in found[key]], style)
        for style, (key, words) in enumerate((("clean", "clean"), ("adversarial", "attacked")))
        if found.get(key)
    ]
    labels = ("layer", "relative size (%)")
    return draw(method.label, lines, labels, whole=True)


def diagnostics(method: Method) -> dict[str, Any]:
    """Return the diagnostics of a method from all its evaluations."""
    out: dict[str, Any] = {}
    for source in method.sources:
        out |= source.evaluation.diagnostics.get(method.model) or {}
    return out


def stages(methods: Sequence[Method]) -> list[dict[str, Any]]:
    """Return robust accuracy after each stage of multi-stage attacks, by radius and method."""
    found: dict[tuple[str, ...], list[tuple[Column, str, list[float]]]] = {}
    for method in methods:
        for column, cell in method.attacked().items():
            if own := cell.row.get("parts"):
                title = f"{column.attack} ({path_words(column.path)})"
                shares = [100 * stage["standing"] / cell.row["n"] for stage in own]
                key = (title, *(stage["attack"] for stage in own))
                found.setdefault(key, []).append((column, method.label, shares))
    return [
        {
            "title": title,
            "names": names,
            "groups": [
                (radius(eps), [own for column, *own in rows if column.eps == eps])
                for eps in sorted({column.eps for column, *_ in rows})
            ],
        }
        for (title, *names), rows in found.items()
    ]
