"""``fastprompt report RUN [RUN...]``: what evaluations found, as a page and as tables."""

from collections.abc import Sequence

from ..report import write_report
from .parser import Parser

_ABOUT = (
    "Write one self-contained HTML page about the evaluations of some runs, and beside it their "
    "numbers as CSV, as a Markdown table and as a LaTeX table."
)


def report_parser() -> Parser:
    """The options of the command."""
    parser = Parser(prog="fastprompt report", description=_ABOUT, allow_abbrev=False)
    parser.add_argument("runs", type=str, nargs="+", help="run folders, or folders of evaluations")
    parser.add_argument(
        "--out", type=str | None, help="default: report.html in the run, or here for several"
    )
    return parser


def report(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    given = report_parser().parse_args(list(arguments)).as_dict()
    page = write_report(given["runs"], given["out"])
    beside = ", ".join(page.with_suffix(suffix).name for suffix in (".csv", ".md", ".tex"))
    print(f"report: {page}\nbeside it: {beside}")
    return 0
