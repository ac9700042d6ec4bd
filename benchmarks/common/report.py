"""Writes result files and formats tables."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastprompt._utils.files import write_json
from fastprompt._utils.versions import versions

from .machine import facts

NOT_YET = "not yet measured"


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result with the machine's facts and the package versions."""
    write_json(path, {**result, "machine": facts(), "versions": versions()})
    print(f"written: {path}")


def table(rows: Sequence[Sequence[object]]) -> str:
    """Format aligned columns: the first one left-aligned, the others right-aligned."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for name, *figures in cells:
        right = (f.rjust(w) for f, w in zip(figures, widths[1:], strict=True))
        lines.append("  ".join([name.ljust(widths[0]), *right]))
    return "\n".join(lines)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def gigaflops(flops: float) -> str:
    """Format FLOPs in units of 1e9."""
    return f"{flops / 1e9:.1f}"


def mebibytes(size: float) -> str:
    """Format bytes in MiB."""
    return f"{size / 2**20:.0f}"
