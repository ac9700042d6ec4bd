"""``fastprompt import CHECKPOINT``: convert a checkpoint of the original code to a run folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._utils.checks import check_classnames
from ..data import load_data
from ..interop.importing import import_prompts
from .parser import Parser, add_model, model_of

_ABOUT = (
    "Convert a checkpoint of CoOp, AdvPT, APT, MaPLe or FAP to a run folder, to load, evaluate or "
    "tune further (--init_from). No code in the file is executed."
)


def import_parser() -> Parser:
    """Build the parser of the command."""
    parser = Parser(prog="fastprompt import", description=_ABOUT, allow_abbrev=False)
    parser.add_argument(
        "checkpoint", type=str, help="file, such as prompt_learner/model.pth.tar-50"
    )
    add_model(parser)
    parser.add_argument("--data", type=str | None, help="data set that the prompts were tuned on")
    parser.add_argument("--root", type=str, default="data", help="folder of torchvision data sets")
    parser.add_argument(
        "--download", type=bool, default=False, help="let torchvision download the data set"
    )
    parser.add_argument("--classnames", type=str | None, help="file with one class name per line")
    parser.add_argument(
        "--method", type=str | None, help="default: apt, or capt for a file of multi-modal prompts"
    )
    parser.add_argument("--out", type=str | None, help="run folder to write; required")
    return parser


def import_checkpoint(arguments: Sequence[str]) -> int:
    """Run the command and return the exit code."""
    given = import_parser().parse_args(list(arguments)).as_dict()
    if given["out"] is None:  # argparse's error would name a positional `out`
        raise ValueError("--out is required; pass the run folder to write")
    clip = model_of(given)
    names = _classnames(given, clip.image_size)
    tuner = import_prompts(given["checkpoint"], clip, names, method=given["method"])
    folder = tuner.save(given["out"], job={"imported": Path(given["checkpoint"]).name})
    print(f"{tuner.method} on {clip.name}, {len(names)} classes: run folder {folder}")
    return 0


def _classnames(given: dict[str, Any], image_size: int | tuple[int, int]) -> list[str]:
    if (given["data"] is None) == (given["classnames"] is None):
        raise ValueError("--data or --classnames must give the class names; pass one of them")
    if given["data"] is not None:
        where = {"root": given["root"], "download": given["download"]}
        return load_data(given["data"], image_size=image_size, **where).classnames
    file = Path(given["classnames"])
    if not file.is_file():
        raise FileNotFoundError(f"classnames: file {file} does not exist")
    return check_classnames(line for line in file.read_text("utf-8").splitlines() if line.strip())
