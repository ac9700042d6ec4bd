"""A protocol's HTML page: its table as a heat map, and curves over the shots."""

from itertools import groupby
from pathlib import Path
from typing import Any

from .._utils.files import write_bytes
from ..report.page import render
from ..report.plots import Plot, Series, draw
from .results import Row, Table
from .tables import cell


def write_page(table: Table, folder: Path) -> None:
    """Write ``report.html``, a page without external resources."""
    write_bytes(folder / "report.html", page_text(table).encode())


def page_text(table: Table) -> str:
    """Render the page."""
    return render(
        "protocol.html.j2",
        Path(__file__).parent,
        heat=True,
        table=table,
        groups=_groups(table),
        plots=_curves(table) if table.protocol == "few-shot" else [],
    )


def _groups(table: Table) -> list[tuple[str, list[tuple[str, list[tuple[int, str]]]]]]:
    """Return the rows by data set and accuracy: the method, and a shade and text per column."""
    return [
        (title, [(row.method, [_shaded(row, c) for c in table.columns]) for row in rows])
        for title, rows in groupby(table.rows, _title)
    ]


def _title(row: Row) -> str:
    return f"{row.data}: {row.accuracy}" if row.data else row.accuracy


def _shaded(row: Row, column: str) -> tuple[int, str]:
    return round(100 * (row.mean(column) or 0.0)), cell(row, column, "{:.1f} ± {:.1f}", " †")


def _curves(table: Table) -> list[Plot]:
    shots = [c for c in table.columns if c != "all"]
    if len(shots) < 2:
        return []
    methods = list(dict.fromkeys(row.method for row in table.rows))
    ticks = sorted(map(int, shots))
    return [
        draw(
            title,
            [_line(row, ticks, methods.index(row.method)) for row in rows],
            ("shots", "accuracy (%)"),
            percent=True,
            ticks=ticks,
        )
        for title, rows in groupby(table.rows, _title)
    ]


def _line(row: Row, shots: list[int], style: int) -> Series:
    each: list[list[Any]] = [[100 * v for v in row.values[str(s)].values()] for s in shots]
    mean = [100 * (row.mean(str(s)) or 0.0) for s in shots]
    return Series(row.method, shots, mean, style, ([*map(min, each)], [*map(max, each)]))
