"""Options of ``fastprompt tune METHOD``."""

from typing import Any, Literal

from ..methods.registry import TUNERS
from .parser import Parser, add_checks, add_model, add_names, add_ray, add_root

_RADII: Any = list[float | int | str] | float | int | str | None
# a run records them as arguments of load_data
DATA_KEYS = (
    "data",
    "shots",
    "classes",
    "data_seed",
    "root",
    "classnames",
    "templates",
    "on_error",
)
JOB_KEYS = (
    *("clip", "pretrained", "image_weights", "image_size", "device", *DATA_KEYS, "download"),
    *("attacks", "eval_eps", "eval_limit", "eval_batch", "sanity", "track"),
    *("search_precision", "confirm"),
)
OTHER_KEYS = (
    *("out", "resume", "seeds", "ray"),
    *("config", "print_config", "published", "yacs", "yacs_trainer"),
)


def tune_parser(method: str) -> Parser:
    """Build the parser of a method: the options of the job, then the method's settings."""
    tuner = TUNERS[method]
    about = next(iter((tuner.__doc__ or "").splitlines()), f"Tune {method} prompts.")
    about += " A bundled model's preset replaces defaults of the settings; the run prints them."
    parser = Parser(
        prog=f"fastprompt tune {method}",
        description=about,
        allow_abbrev=False,
        print_config=None,  # --print_config is our own: --config is, too
    )
    job = tuner.job
    add_model(parser)
    parser.add_argument(
        "--data", type=str, default=job["data"], help="data set, image folder or manifest"
    )
    parser.add_argument(
        "--shots",
        type=int | Literal["all"],
        default=job["shots"],
        help=f"images per class; with --data the default is {tuner.shots}",
    )
    parser.add_argument("--classes", type=Literal["all", "base", "new"], default="all")
    parser.add_argument("--data_seed", type=int, default=0, help="seed of the few-shot draw")
    add_root(parser)
    add_names(parser)
    parser.add_argument("--out", type=str | None, help="run folder; default: new, in runs/")
    parser.add_argument("--resume", type=str | None, help="run folder to resume")
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        help="one run per seed, which sets both seed and data_seed; prints the mean and range of "
        "the runs",
    )
    if tuner.takes_runner:
        add_ray(parser, "the adversarial embeddings and the evaluation")
    parser.add_argument("--config", type=str | None, help="YAML or JSON file of the settings below")
    parser.add_argument(
        "--print_config",
        action="store_true",
        help="print the settings as a file for --config, and exit",
    )
    parser.add_argument(
        "--published",
        action="store_true",
        help="use the settings of the authors' code instead of the defaults and of the preset; "
        "other options and --config override them",
    )
    parser.add_argument(
        "--yacs",
        type=str | None,
        help="YAML file of the public codes (CoOp, APT, FAP, ...), translated into options; other "
        "options and --config override it",
    )
    parser.add_argument(
        "--yacs_trainer", type=str | None, help="their file of the trainer, if it is another one"
    )
    parser.add_argument(
        "--attacks",
        type=list[str] | str,
        default=job["attacks"],
        help="attacks of the evaluation, comma-separated",
    )
    parser.add_argument(
        "--eval_eps",
        type=_RADII,
        default=job["eval_eps"],
        help="radii of the evaluation; with --data the default is 1/255, 2/255 and the tuning eps",
    )
    parser.add_argument(
        "--eval_limit",
        type=int | None,
        default=200,
        help="number of test images, drawn by seed 0; null for all",
    )
    parser.add_argument("--eval_batch", type=int, default=100)
    add_checks(parser)
    parser.add_argument(
        "--track",
        type=str | None,
        help="comma-separated trackers of each epoch's metrics: tensorboard,wandb,mlflow",
    )
    parser.add_class_arguments(tuner.Config, help=f"settings of {method}")
    return parser
