"""Report of runs: an HTML page, and the numbers as CSV, Markdown and LaTeX."""

from collections.abc import Sequence
from pathlib import Path

from .._utils.checks import check_folder, check_path, shown
from .._utils.files import write_bytes
from .comparison import compare
from .page import page_text
from .runs import read_runs
from .seeds import group_runs, over_seeds
from .tables import csv_text, latex_text, markdown_text


def write_report(runs: Sequence[str | Path] | str | Path, out: str | Path | None = None) -> Path:
    """Write ``report.html``, and ``.csv``, ``.md`` and ``.tex`` files of the same name.

    Runs that differ only in their seeds are shown as one, with the mean, the sample standard
    deviation and the range; the page and the CSV file also have the value of each seed.

    Args:
        runs: one or several run folders, folders that contain a ``result.json``, or folders of
            several seeds.
        out: file name of the page; by default ``report.html`` in the run folder, for several runs
            in the current folder.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: a folder has no result.
        ValueError: a file in a folder is damaged, or ``out`` does not end in ``.html``.
    """
    if not isinstance(runs, str | Path | Sequence):
        raise TypeError(f"runs must be a folder or a list of folders, got {shown(runs)}")
    folders = [
        check_path(folder, "runs") for folder in ([runs] if isinstance(runs, str | Path) else runs)
    ]
    read = read_runs(folders)
    page = _target(folders, out)
    groups = group_runs(read)
    methods = over_seeds(compare(read), groups)
    # render all files before writing the first; write the page last
    texts = {
        ".csv": csv_text(read),
        ".md": markdown_text(methods),
        ".tex": latex_text(methods),
        ".html": page_text(groups, methods),
    }
    for suffix, text in texts.items():
        write_bytes(page.with_suffix(suffix), text.encode())
    return page


def _target(folders: Sequence[str | Path], out: str | Path | None) -> Path:
    if out is None:
        return (Path(folders[0]) if len(folders) == 1 else Path()) / "report.html"
    page = check_path(out, "out")
    check_folder(page.parent, "out")
    if page.suffix != ".html" or page.is_dir():
        raise ValueError(f"out must be a file name ending in .html, got {str(out)!r}")
    return page
