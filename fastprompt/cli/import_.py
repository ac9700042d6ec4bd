"""``fastprompt import CHECKPOINT``: convert a checkpoint of the original code to a run folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from .._utils.checks import check_folder, check_path, some
from ..data import Data, load_data
from ..data.naming import listed_names
from ..interop.checkpoints import read_prompts
from ..interop.importing import tuner_with
from .parser import Parser, add_model, add_root, device_name, model_of

_ABOUT = (
    "Convert a checkpoint of CoOp, AdvPT, APT, MaPLe, FAP or NAP to a run folder, to load, "
    "evaluate or tune further (--init_from). Class names and fixed words are read from the "
    "checkpoint. No code in the file is executed."
)


def import_parser() -> Parser:
    """Build the parser of the command."""
    parser = Parser(prog="fastprompt import", description=_ABOUT, allow_abbrev=False)
    parser.add_argument(
        "checkpoint", type=str, help="file, such as prompt_learner/model.pth.tar-50"
    )
    add_model(parser)
    parser.add_argument(
        "--data",
        type=str | None,
        help="data set that the prompts were tuned on, for its class names and for evaluations; "
        "default: the class names in the checkpoint",
    )
    add_root(parser)
    parser.add_argument(
        "--classnames",
        type=str | None,
        help="file with one class name per line; with --data also as in fastprompt tune",
    )
    parser.add_argument("--classes", type=Literal["all", "base", "new"], default="all")
    parser.add_argument(
        "--method",
        type=str | None,
        help="default: apt; for multi-modal prompts capt, or nap if they have refiners",
    )
    parser.add_argument(
        "--template",
        type=str | None,
        help="positions of context and class name, such as '[ctx] {} [ctx].'; default: read from "
        "the checkpoint and its log.txt",
    )
    parser.add_argument("--out", type=str | None, help="run folder to write; required")
    return parser


def import_checkpoint(arguments: Sequence[str]) -> int:
    """Run the command and return the exit code."""
    given = import_parser().parse_args(list(arguments)).as_dict()
    out = check_folder(given["out"], "--out")
    if out is None:  # argparse's error would name a positional `out`
        raise ValueError("--out is required; pass the run folder to write")
    path = check_path(given["checkpoint"], "checkpoint")
    device_name(given["device"])
    prompts = read_prompts(path)  # before the model is loaded, which takes longer
    data = _data(given)
    names = None if given["classnames"] is None else listed_names(Path(given["classnames"]))
    if data is not None:
        names = data.classnames
    clip = model_of(given)
    tuner = tuner_with(prompts, path, clip, names, given["method"], given["template"])
    source = {} if data is None else data.for_model(clip).source
    job = {"imported": path.name, "layout": prompts.layout, "data": source or None}
    folder = tuner.save(out, job=job)
    print(f"layout of {prompts.layout}: {tuner.n_ctx} context tokens, depth {prompts.depth}")
    print(f"template {tuner.config.template!r}, classes {some(tuner.classnames)}")
    print(f"{tuner.method} on {clip.name}, {len(tuner.classnames)} classes: run folder {folder}")
    return 0


def _data(given: dict[str, Any]) -> Data | None:
    if given["data"] is None:
        return None
    options = ("classes", "root", "download", "classnames")
    return load_data(given["data"], **{name: given[name] for name in options})
