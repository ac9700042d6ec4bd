"""``fastprompt data check ROOT``: list the data sets of CoOp in a folder."""

from collections.abc import Sequence

from .._utils.checks import check_path
from .._utils.names import unknown
from .._utils.printable import printable
from ..data.coop import Found, survey
from .parser import Parser

_USAGE = "usage: fastprompt data check ROOT\nlist which data sets of CoOp are in the folder ROOT"
_ABOUT = (
    "List which data sets of CoOp are in a folder, how many pictures each split has, and what is "
    "missing. The pictures are not decoded. The exit code is 1 if a data set is incomplete or "
    "damaged, or if there is none."
)


def check_parser() -> Parser:
    """Build the parser of ``fastprompt data check``."""
    parser = Parser(prog="fastprompt data check", description=_ABOUT, allow_abbrev=False)
    parser.add_argument("root", type=str, help="folder of the data sets, as for --root")
    return parser


def data(arguments: Sequence[str]) -> int:
    """Run the command and return the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE)
        return 0 if arguments else 2
    if arguments[0] != "check":
        raise unknown("command of fastprompt data", arguments[0], ("check",))
    root = check_path(check_parser().parse_args(list(arguments[1:])).root, "root")
    if not root.is_dir():
        raise FileNotFoundError(f"root: {root} is not a folder; pass the folder of the data sets")
    found = survey(root)
    for one in found:
        print(printable(f"{one.name:<20}{_facts(one)}"))
    usable = sum(bool(one.images) for one in found)
    broken = sum(one.begun and not one.images for one in found)
    print(f"{usable} of {len(found)} data sets are complete, {broken} are not, the rest is absent")
    return 1 if broken or not usable else 0


def _facts(one: Found) -> str:
    if one.missing:
        return f"{'incomplete' if one.begun else 'absent'}: needs {', '.join(one.missing)}"
    if one.problem:
        return f"unusable: {one.problem}"
    images = " / ".join(f"{n} {part}" for part, n in one.images.items())
    files = f", {one.few_shots} few-shot files" if one.few_shots else ""
    return f"{images} images, {one.classes} classes{files}"
