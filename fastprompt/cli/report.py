"""``fastprompt report RUN [RUN...]``: write the results of evaluations as a page and as tables."""

from collections.abc import Sequence

from .._utils.printable import printable
from ..report import write_report
from .parser import Parser

_ABOUT = (
    "Write the evaluations of one or more runs as a self-contained HTML page, and their numbers as "
    "a CSV file, a Markdown table and a LaTeX table in the same folder. Runs that differ only in "
    "their seeds are shown as mean and spread."
)


def report_parser() -> Parser:
    """Build the parser of the command."""
    parser = Parser(prog="fastprompt report", description=_ABOUT, allow_abbrev=False)
    parser.add_argument("runs", type=str, nargs="+", help="run, seeds or evaluation folders")
    parser.add_argument(
        "--out",
        type=str | None,
        help="HTML file to write; default: report.html in the run folder, or for several runs in "
        "the current folder",
    )
    return parser


def report(arguments: Sequence[str]) -> int:
    """Run the command and return the exit code."""
    given = report_parser().parse_args(list(arguments)).as_dict()
    page = write_report(given["runs"], given["out"])
    beside = ", ".join(page.with_suffix(suffix).name for suffix in (".csv", ".md", ".tex"))
    print(f"report: {printable(str(page))}\ntables: {printable(beside)}")
    return 0
