"""``fastprompt tune METHOD``: tune prompts and evaluate them and the zero-shot classifier."""

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from .._utils.checks import (
    MOST_THREADS,
    Fraction,
    check_count,
    check_folder,
    check_path,
    check_seed,
    parse_fraction,
)
from .._utils.distributed import from_first, is_first, processes
from .._utils.dtypes import AUTO, explain_auto
from .._utils.locks import locked
from .._utils.names import unknown
from .._utils.printable import printable
from .._utils.progress import tell
from .._utils.run_folder import RunFolder
from ..data.load import Data, load_data, load_recorded
from ..evaluation import Evaluation
from ..evaluation.plan import plan_attacks, split_radii
from ..evaluation.search import check_search
from ..interop.yacs import Translation, translate_yacs
from ..methods.registry import TUNERS
from ..report import write_report
from ..runners import HERE, Runner, connected
from ..tuning.config import as_dict, read_config
from ..tuning.parts import check_processes
from ..tuning.renamed import renamed_config
from ..tuning.tracking import split_trackers
from ..tuning.tuner import Tuner
from .parser import (
    Parser,
    add_checks,
    add_model,
    add_names,
    add_ray,
    device_name,
    model_of,
    runner_in,
)
from .processes import leave
from .seeds import SeedsFolder, check_seeds, run_seeds
from .words import classes_of, images_of, seen_by

_RADII: Any = list[float | int | str] | float | int | str | None
RADII = ("1/255", "2/255")  # evaluated in addition to the tuning eps
# a run records them as arguments of load_data
_DATA_KEYS = (
    "data",
    "shots",
    "classes",
    "data_seed",
    "root",
    "classnames",
    "templates",
    "on_error",
)
_JOB_KEYS = (
    *("clip", "pretrained", "image_weights", "image_size", "device", *_DATA_KEYS, "download"),
    *("attacks", "eval_eps", "eval_limit", "eval_batch", "sanity", "track"),
    *("search_precision", "confirm"),
)
_OTHER_KEYS = (
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
    parser.add_argument(
        "--root",
        type=str | None,
        help="root of CoOp's or torchvision's data sets, or of a manifest",
    )
    parser.add_argument(
        "--download", type=bool, default=False, help="let torchvision download the data set"
    )
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


def tune(arguments: Sequence[str]) -> int:
    """Run the command and return the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: fastprompt tune METHOD [options]\nmethods: " + ", ".join(TUNERS))
        print("fastprompt tune METHOD --help lists the options")
        return 0 if arguments else 2
    method = arguments[0]
    if method not in TUNERS:
        raise unknown("method", method, TUNERS)
    parser = tune_parser(method)
    given = parser.parse_args(list(arguments[1:]), defaults=False).as_dict()
    if given.get("config") is not None:
        check_path(given["config"], "config")
    runner = runner_in(given)
    out = check_folder(given.get("out"), "--out")
    if (folder := check_folder(given.get("resume"), "--resume")) is not None:
        with connected(runner):
            return _resume(method, given, folder, runner)
    config = TUNERS[method].Config
    read = read_config(config, given["config"]) if given.get("config") else {}
    foreign = _translated(method, given, read)
    own = {k: v for k, v in given.items() if k in _JOB_KEYS}
    small = "data" not in {**foreign.job, **own}
    other = {} if small else {"shots": TUNERS[method].shots, "eval_eps": None}
    job = {**_defaults(parser), **other, **foreign.job, **own}
    apart = (*_JOB_KEYS, *_OTHER_KEYS)
    settings = {k: v for k, v in given.items() if k not in apart}
    published = as_dict(config.published()) if given.get("published") else foreign.base
    settings = {**published, **foreign.settings, **read, **settings}
    # refuses invalid settings before a model is loaded
    whole = config(**{**TUNERS[method].presets.get(job["clip"], {}), **settings})
    if given.get("print_config"):
        print(yaml.safe_dump(as_dict(whole), sort_keys=False), end="")
        return 0
    if not given.get("seeds"):
        with connected(runner):
            _run(method, job, None, settings, out, resume=False, runner=runner)
        return 0
    _check_one_process()
    for name in ("seed", "data_seed"):
        if name in given:
            raise ValueError(f"--seeds sets the seed and the data_seed of each run: drop --{name}")
    if "seed" in read:
        raise ValueError("--seeds sets the seed of each run: drop seed from the settings file")
    _check_job(job)
    _check_data(job)
    check_seeds(given["seeds"])
    out = out or _new_folder(method)
    seeds = SeedsFolder.begin(out, method, given["seeds"], job, settings)
    with connected(runner):
        return run_seeds(seeds, partial(_run, runner=runner))


def _translated(method: str, given: Mapping[str, Any], read: Mapping[str, Any]) -> Translation:
    """Translate and print the files of --yacs, without what other options and --config set."""
    if given.get("yacs") is None:
        if given.get("yacs_trainer") is not None:
            raise ValueError("--yacs is needed with --yacs_trainer; pass a single file as --yacs")
        return Translation(method)
    elsewhere = dict.fromkeys(read, "--config") | {name: f"--{name}" for name in given}
    if given.get("seeds"):
        elsewhere |= dict.fromkeys(("seed", "data_seed"), "--seeds")
    found = translate_yacs(method, given["yacs"], given.get("yacs_trainer"), given=elsewhere)
    # the output of --print_config is a file
    to = sys.stderr if given.get("print_config") else sys.stdout
    print(printable(f"{given['yacs']} as settings of {method}:"), file=to)
    for line in str(found).splitlines():
        print(printable(f"  {line}"), file=to)
    return found


def _new_folder(method: str) -> Path:
    """Create and return a new folder in ``runs``."""
    stem = Path("runs") / f"{method}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in range(1, 1000):
        folder = stem if number == 1 else stem.with_name(f"{stem.name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise FileExistsError(f"out: {stem} and its numbered siblings all exist; pass --out")


def _defaults(parser: Parser) -> dict[str, Any]:
    values = parser.get_defaults().as_dict()
    return {k: values.get(k) for k in _JOB_KEYS}


def _resume(method: str, given: Mapping[str, Any], folder: Path, runner: Runner) -> int:
    extra = sorted(set(given) - {"resume"})
    if extra:
        raise ValueError(
            f"--resume takes all settings from the run's config.json; remove --{extra[0]}"
        )
    if is_first() and SeedsFolder.is_one(folder):
        _check_one_process()
        seeds = SeedsFolder.read(folder, method)
        _check_stored_job(method, seeds.job, _JOB_KEYS, folder / "seeds.json")
        begin, go_on = (partial(call, runner=runner) for call in (_run, _resume_one))
        return run_seeds(seeds, begin, go_on)
    _resume_one(method, folder, runner)
    return 0


def _check_one_process() -> None:
    if processes() > 1:
        raise ValueError(
            f"--seeds needs one process, got {processes()}: start a run for each seed, or start "
            "it without torchrun"
        )


def _resume_one(method: str, folder: Path, runner: Runner) -> Evaluation:
    run = RunFolder(folder)
    if not is_first():
        return _resume_locked(method, run, runner)
    run.read_config()  # raises, before the folder is created, if it has no run
    with locked(folder, "--resume"):
        return _resume_locked(method, run, runner)


def _resume_locked(method: str, run: RunFolder, runner: Runner) -> Evaluation:
    config = renamed_config(from_first(run.read_config))
    if config["method"] != method:
        raise ValueError(f"--resume: {run.path} is a run of {config['method']!r}, not {method!r}")
    job = config.get("job")
    if not isinstance(job, Mapping):
        raise ValueError(
            f"--resume: {run.path} was not started from the command line; "
            "resume it in Python, with fit(..., resume=True)"
        )
    source = config.get("data") if "data" not in job else None  # earlier versions: in the job
    needed = [key for key in _JOB_KEYS if source is None or key not in _DATA_KEYS]
    _check_stored_job(method, job, needed, run.path / "config.json")
    threads = config.get("threads")
    if type(threads) is not int or not 1 <= threads <= MOST_THREADS:
        raise ValueError(
            f"--resume: {run.path / 'config.json'} is damaged: invalid threads; "
            "restore it from a copy, or start a new run"
        )
    torch.set_num_threads(threads)  # the result's bits depend on it
    settings = config["config"]
    if settings.get("class_shards", 1) != 1:  # there may be more or fewer processes now
        settings = {**settings, "class_shards": processes()}
    return _run(method, job, settings, {}, run.path, resume=True, source=source, runner=runner)


def _check_stored_job(
    method: str, job: Mapping[str, Any], needed: Sequence[str], file: Path
) -> None:
    """Check a job from a file, which may have been edited, as strictly as the command line."""
    if missing := [key for key in needed if key not in job]:
        raise ValueError(
            f"--resume: the job in {file} lacks {missing[0]!r}; restore the file from a copy, or "
            "start a new run"
        )
    tune_parser(method).parse_object({k: v for k, v in job.items() if v is not None})


def _check_job(job: Mapping[str, Any]) -> None:
    """Check the job, without its data, before a model is loaded and tuning starts."""
    split_trackers(job["track"])
    check_search(job["search_precision"], torch.device(device_name(job["device"])))
    for name in ("image_weights", "pretrained"):
        if job[name] is not None:
            check_path(job[name], name)
    given = job["eval_eps"]
    for radius in [] if given is None else split_radii(given):
        parse_fraction(radius, "eval_eps", zero=True)
    plan_attacks(job["attacks"], 0.1 if given is None else given)
    check_count(job["eval_batch"], "eval_batch")
    if job["eval_limit"] is not None:
        check_count(job["eval_limit"], "eval_limit")


def _check_data(job: Mapping[str, Any]) -> None:
    """Check the job's data, which a resumed run has recorded, before a folder is created."""
    check_seed(job["data_seed"], "data_seed")
    if job["shots"] != "all":
        check_count(job["shots"], "shots")
    for name in ("data", "root"):
        if name == "data" or job[name] is not None:
            check_path(job[name], name)


def _check_free(out: Path) -> None:
    """Raise if the folder is not empty, before a model is loaded or a line is printed."""
    run = RunFolder(out)
    if run.started:
        raise FileExistsError(f"out: {out} already holds a run; --resume it or choose another")
    run.check_free("out")


def _radii(eps: Fraction) -> list[float]:
    """Return the radii at which small CLIP models differ, and the tuning radius."""
    return sorted({parse_fraction(radius, "eps") for radius in (*RADII, eps)})


def _data(job: Mapping[str, Any]) -> Data:
    return load_data(
        job["data"],
        shots=job["shots"],
        seed=job["data_seed"],
        classes=job["classes"],
        root=job["root"],
        download=job["download"],
        classnames=job["classnames"],
        templates=job["templates"],
        on_error=job["on_error"] or "raise",
    )


def _precision(tuner: Tuner, given: Mapping[str, Any]) -> str:
    """Return the precision of the encoders and, if none was given, why it is chosen."""
    if given.get("precision", AUTO) != AUTO or tuner.config.engine == "reference":
        return tuner.config.precision
    return explain_auto(tuner.clip.dtype, tuner.clip.device)


def _run(
    method: str,
    job: Mapping[str, Any],
    config: Any,
    settings: Mapping[str, Any],
    out: Path | None,
    *,
    resume: bool,
    source: Mapping[str, Any] | None = None,
    runner: Runner = HERE,
) -> Evaluation:
    """Tune and evaluate; ``source`` is the data that a resumed run recorded."""
    _check_job(job)
    if source is None:
        _check_data(job)
    if out is not None and not resume and is_first():
        _check_free(out)
    tell(f"loading {job['data'] if source is None else source.get('name')} and {job['clip']}")
    data = _data(job) if source is None else load_recorded(source, download=job["download"])
    clip = model_of(job)  # after the data, which is refused sooner
    data = data.for_model(clip)
    tuner = TUNERS[method](clip, data.classnames, config, **settings)
    eps = (
        _radii(getattr(tuner.config, "eps", "4/255"))
        if job["eval_eps"] is None
        else job["eval_eps"]
    )
    images = len(data.train)  # unreadable images are found before there is a folder
    check_processes(tuner.config.batch)
    out = Path(from_first(lambda: str(out or _new_folder(method))))
    drawn = f" ({data.source['few_shots']})" if "few_shots" in data.source else ""
    about = (
        f"{method} on {clip.name}, {data.name}: "
        f"{classes_of(len(data.classnames), data.arguments['classes'])}, {images} training "
        f"images{drawn}; run folder {out}"
    )
    print(printable(about), flush=True)
    given = {**(config or {}), **settings}
    if preset := {k: v for k, v in tuner.preset.items() if k not in given}:
        shown = {k: f"{255 * v:g}/255" if k == "eps" else v for k, v in preset.items()}
        print(f"preset: {', '.join(f'{k}={v}' for k, v in shown.items())}", flush=True)
    print(f"precision: {_precision(tuner, given)}", flush=True)
    began = time.perf_counter()
    facts = {"job": {k: v for k, v in job.items() if k not in _DATA_KEYS}}
    first = is_first()
    # until the end: no other process may evaluate the run
    with RunFolder(out).locked("out") if first else contextlib.nullcontext():
        tuner.fit(
            data.train,
            data.val,
            out,
            resume=resume,
            job=facts,
            callbacks=split_trackers(job["track"]),
            runner=runner,
        )
        leave()
        if not first:  # the first process evaluates
            raise SystemExit(0)
        tuned = time.perf_counter()
        result = tuner.evaluate(
            data.test,
            job["attacks"],
            eps,
            templates=data.templates,
            limit=job["eval_limit"],
            batch=job["eval_batch"],
            sanity=job["sanity"],
            search_precision=job["search_precision"],
            confirm=job["confirm"],
            name=data.name,
            out=out,
            resume=True,  # keeps what a stopped run already evaluated
            runner=runner,
        )
        report = write_report(out)
    print(f"\n{result.table()}\n")
    print(
        f"accuracy on {images_of(result)} with 95 % intervals; adaptive attacks differentiate "
        "through the prompts, transfer attacks do not use them"
    )
    if seen := seen_by(clip.name, data.name):
        print(seen)
    print(f"tuned in {tuned - began:.0f} s, evaluated in {time.perf_counter() - tuned:.0f} s")
    print(printable(f"report: {report}"))
    print(printable(f"run folder: {out}"))
    return result
