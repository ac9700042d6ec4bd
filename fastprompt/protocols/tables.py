"""A protocol's table as Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

from .._utils.files import write_bytes
from ..report.tables import mark_down, plain, tex, tex_line
from .results import Row, Table

_FIELDS = (
    *("data", "method", "scoring", "attack", "eps", "column", "mean", "std", "seeds", "values"),
    "trusted",
)


def write_tables(table: Table, folder: Path) -> None:
    """Write ``table.md``, ``table.csv`` and ``table.tex``."""
    for suffix, text in ((".md", markdown), (".csv", csv_text), (".tex", latex)):
        write_bytes(folder / f"table{suffix}", text(table).encode())


def heads(table: Table) -> list[str]:
    """Return the heads of the columns before the values."""
    data = ["data"] if any(row.data for row in table.rows) else []
    return [*data, "accuracy", "method", "scoring"]


def _firsts(table: Table, row: Row) -> list[str]:
    facts = {"data": row.data, "accuracy": row.accuracy, "method": row.method}
    return [{**facts, "scoring": table.scoring}[head] for head in heads(table)]


def cell(row: Row, column: str, form: str, mark: str) -> str:
    """Format a value with its spread; ``form`` takes a mean and a standard deviation."""
    mean, std = row.mean(column), row.std(column)
    if mean is None:
        return "-"
    text = f"{100 * mean:.1f}" if std is None else form.format(100 * mean, 100 * std)
    return text + mark if column in row.distrusted else text


def _body(table: Table, escape: Callable[[str], str], form: str, mark: str) -> list[list[str]]:
    return [
        [*map(escape, _firsts(table, row)), *(cell(row, c, form, mark) for c in table.columns)]
        for row in table.rows
    ]


def markdown(table: Table) -> str:
    """Return a Markdown table with its caption and notes."""
    firsts = heads(table)
    rule = [":--"] * len(firsts) + ["--:"] * len(table.columns)
    head = [*firsts, *map(mark_down, table.columns)]
    lines = [head, rule, *_body(table, mark_down, "{:.1f} ± {:.1f}", " †")]
    below = [f"{mark_down(table.caption)}.", *(f"† {mark_down(note)}." for note in table.notes)]
    return "\n".join(
        ["| " + " | ".join(x) + " |" for x in lines] + [f"\n{x}" for x in below] + [""]
    )


def latex(table: Table) -> str:
    """Return a LaTeX table that uses the package booktabs."""
    firsts = heads(table)
    form = r"{:.1f}\,{{\scriptsize$\pm$ {:.1f}}}"
    notes = "".join(rf" $^\dagger$\,{tex(note)}." for note in table.notes)
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}[t]",
            r"  \centering",
            rf"  \caption{{{tex(table.caption)}.{notes}}}",
            rf"  \label{{tab:{table.protocol}}}",
            rf"  \begin{{tabular}}{{{'l' * len(firsts)}{'r' * len(table.columns)}}}",
            r"    \toprule",
            tex_line([*map(tex, [*firsts, *table.columns])]),
            r"    \midrule",
            *map(tex_line, _body(table, tex, form, r"$^\dagger$")),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def csv_text(table: Table) -> str:
    """Return one line per row and column; accuracies are in [0, 1], seeds and values in lists."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_FIELDS)
    for row in table.rows:
        for column in table.columns:
            found = row.values.get(column, {})
            seeds = ["" if seed is None else str(seed) for seed in found]
            line = (row.data, row.method, table.scoring, row.attack, row.eps, column)
            spread = (row.mean(column), row.std(column), " ".join(seeds))
            values = " ".join(f"{value:.6g}" for value in found.values())
            trusted = column not in row.distrusted
            writer.writerow([plain(x) for x in (*line, *spread, values, trusted)])
    return out.getvalue()
