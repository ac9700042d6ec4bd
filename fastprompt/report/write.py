"""A report of some runs: a page, and the numbers as CSV, Markdown and LaTeX beside it."""

from collections.abc import Sequence
from pathlib import Path

from .._utils.files import write_bytes
from .comparison import compare
from .page import page_text
from .runs import read_runs
from .tables import csv_text, latex_text, markdown_text


def write_report(runs: Sequence[str | Path] | str | Path, out: str | Path | None = None) -> Path:
    """Write ``report.html``, and ``.csv``, ``.md`` and ``.tex`` of the same name beside it.

    Args:
        runs: run folders (or folders that hold a ``result.json``): one, or several side by side.
        out: the page's file; by default ``report.html`` in the run's folder, for several runs in
            the current one.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: a folder without a result.
        ValueError: a file in a folder is damaged, or ``out`` does not end in ``.html``.
    """
    folders = [runs] if isinstance(runs, str | Path) else list(runs)
    read = read_runs(folders)
    page = _target(folders, out)
    methods = compare(read)
    # all of them are made before the first is written; the page comes last
    texts = {
        ".csv": csv_text(read),
        ".md": markdown_text(methods),
        ".tex": latex_text(methods),
        ".html": page_text(read, methods),
    }
    for suffix, text in texts.items():
        write_bytes(page.with_suffix(suffix), text.encode())
    return page


def _target(folders: Sequence[str | Path], out: str | Path | None) -> Path:
    if out is None:
        return (Path(folders[0]) if len(folders) == 1 else Path()) / "report.html"
    page = Path(out)
    if page.suffix != ".html" or page.is_dir():
        raise ValueError(f"out must be a file name that ends in .html, got {str(out)!r}")
    return page
