"""Result tables for other programs and for papers: CSV, Markdown, LaTeX."""

import csv
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

from .._utils.printable import printable
from .comparison import Column, Method, columns_of, path_words
from .runs import Run

_PLACE = ("run", "method", "seed", "data_seed", "evaluation", "evaluation_seed", "data")
_FIELDS = (
    *("model", "attack", "path", "eps", "accuracy", "low", "high", "correct", "n", "stalled"),
    *("trusted", "reasons", "forwards", "gradients", "seconds", "precision", "search_precision"),
)
_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")  # the last four: full-width forms
_WIDE = 8  # columns that fit on a page; with more columns, each attack is a row

_TEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
    # after a line break, LaTeX reads these two as its arguments
    **{"[": "{[}", "*": "{*}"},
}


def csv_text(runs: Sequence[Run]) -> str:
    """Return one CSV line per row of each evaluation; accuracies are in [0, 1]."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*_PLACE, *_FIELDS])
    for run in runs:
        for source in run.sources:
            data = source.evaluation.data.get("name")
            place = (run.name, run.method, *run.seeds, source.name, source.seed, data)
            for row in source.evaluation.rows:
                low, high = row["interval"]
                reasons = "; ".join(row["reasons"])
                flat = {**row, "low": low, "high": high, "reasons": reasons}
                line = [flat.get(key, "") for key in _FIELDS]
                writer.writerow([plain(cell) for cell in (*place, *line)])
    return out.getvalue()


def plain(cell: Any) -> Any:
    """Return a CSV cell that no spreadsheet program takes for a formula (OWASP: CSV injection)."""
    if not isinstance(cell, str):
        return cell
    return ("'" if cell.startswith(_FORMULA) else "") + printable(cell)


def markdown_text(methods: Sequence[Method]) -> str:
    """Return a Markdown table for GitHub and Pandoc: accuracy and interval in per cent."""
    columns = columns_of(methods)
    forms = "{:.1f} [{:.1f}, {:.1f}]", "{:.1f} ± {:.1f}"
    body = [[_cell(m, k, forms, "†") for k in columns] for m in methods]
    labels = [mark_down(_labeled(m, "†")) for m in methods]
    if len(columns) > _WIDE:
        heads = ["attack", "path", "eps", *labels]
        lines = [
            [*(mark_down(text) for text in _three(k)), *(row[i] for row in body)]
            for i, k in enumerate(columns)
        ]
        left = 3
    else:
        heads = ["method", *(mark_down(_one(k)) for k in columns)]
        lines = [[label, *row] for label, row in zip(labels, body, strict=True)]
        left = 1
    rule = [":--" if i < left else "--:" for i in range(len(heads))]
    table = ["| " + " | ".join(line) + " |" for line in [heads, rule, *lines]]
    notes = [f"† Not to be trusted: {mark_down(note)}." for note in distrust(methods)]
    below = [f"{mark_down(caption(methods))}.", *notes]
    return "\n".join([*table, *(f"\n{text}" for text in below), ""])


def latex_text(methods: Sequence[Method]) -> str:
    """Return a LaTeX table that uses the package booktabs."""
    columns = columns_of(methods)
    forms = r"{:.1f}\,{{\scriptsize[{:.1f}, {:.1f}]}}", r"{:.1f}\,{{\scriptsize$\pm$ {:.1f}}}"
    body = [[_cell(m, k, forms, r"$^\dagger$") for k in columns] for m in methods]
    labels = [tex(_labeled(m, "")) + (r"$^\dagger$" if m.failed else "") for m in methods]
    if len(columns) > _WIDE:
        heads = [["Attack", "Path", r"$\epsilon$", *labels]]
        lines = [
            [*(tex(text) for text in _three(k)), *(row[i] for row in body)]
            for i, k in enumerate(columns)
        ]
        layout = "lll" + "r" * len(methods)
    else:
        parts = zip(*(_three(k) for k in columns), strict=True)
        firsts = ["Method", "", r"$\epsilon$"]
        heads = [[first, *map(tex, line)] for first, line in zip(firsts, parts, strict=True)]
        lines = [[label, *row] for label, row in zip(labels, body, strict=True)]
        layout = "l" + "r" * len(columns)
    notes = "".join(rf" $^\dagger$\,Not to be trusted: {tex(note)}." for note in distrust(methods))
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}[t]",
            r"  \centering",
            rf"  \caption{{{tex(caption(methods))}.{notes}}}",
            r"  \label{tab:robust-accuracy}",
            rf"  \begin{{tabular}}{{{layout}}}",
            r"    \toprule",
            *(tex_line(line) for line in heads),
            r"    \midrule",
            *(tex_line(line) for line in lines),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def caption(methods: Sequence[Method]) -> str:
    """Return a one-sentence caption of the table, without the final period."""
    facts = []
    for source in {id(s): s for m in methods for s in m.sources}.values():
        n, name = source.evaluation.rows[0]["n"], source.evaluation.data.get("name")
        facts.append(f"{n:,} images" + (f" of {name}" if name else ""))
    where = " or ".join(dict.fromkeys(facts))
    kinds = []
    if not all(m.members for m in methods):
        kinds.append("with 95 % Wilson intervals")
    if any(m.members for m in methods):
        kinds.append("as means with sample standard deviations over seeds")
    return (
        f"Accuracy in % {' or '.join(kinds)} on {where}, clean and under attacks of radius "
        "eps in the L-infinity norm"
    )


def distrust(methods: Sequence[Method]) -> list[str]:
    """Return the reasons why results are not to be trusted, each once."""
    notes = [
        f"{m.label}, {k.attack}{f' at {k.radius}' if k.eps else ''}: {why}"
        for m in methods
        for k, cell in m.cells.items()
        for why in cell.row["reasons"]
    ]
    checks = [f"{m.label}, {s['check']}: {s['reason']}" for m in methods for s in m.failed]
    return list(dict.fromkeys([*checks, *notes]))


def _cell(method: Method, column: Column, forms: tuple[str, str], mark: str) -> str:
    """Format a cell in the form for one seed, or in that for several seeds."""
    if column not in method.cells:
        return ""
    cell = method.cells[column]
    row, one, several = cell.row, *forms
    if method.members:
        alone = f"{100 * row['accuracy']:.1f}"
        text = (
            alone if row["std"] is None else several.format(100 * row["accuracy"], 100 * row["std"])
        )
        if len(cell.each) < len(method.members):
            text += f" ({len(cell.each)} of {len(method.members)})"
    else:
        text = one.format(*(100 * x for x in (row["accuracy"], *row["interval"])))
    return text if row["trusted"] else f"{text} {mark}"


def _labeled(method: Method, mark: str) -> str:
    return f"{method.label} {mark}" if method.failed and mark else method.label


def _three(column: Column) -> tuple[str, str, str]:
    if column.attack == "clean":
        return "clean", "", "0"
    return column.attack, path_words(column.path), column.radius


def _one(column: Column) -> str:
    if column.attack == "clean":
        return "clean"
    return f"{column.attack}, {column.radius} ({path_words(column.path)})"


def tex_line(cells: Sequence[str]) -> str:
    return f"    {' & '.join(cells)} \\\\"


def tex(text: str) -> str:
    return _replace(text, r"[\\&%$#_{}~^<>|\[*]", lambda c: _TEX[c])


def mark_down(text: str) -> str:
    # of GitHub and Pandoc: markup, HTML, entities, mathematics, strikeout, mentions and citations
    special = r"[\\|*_<>`\[\]$~^]|&(?=#?\w+;)|(?<!\w)@"
    return _replace(text, special, lambda c: f"\\{c}")


def _replace(text: str, pattern: str, by: Callable[[str], str]) -> str:
    return re.sub(pattern, lambda found: by(found[0]), printable(" ".join(text.split())))
