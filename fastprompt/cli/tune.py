"""``fastprompt tune METHOD``: tune prompts and evaluate them and the zero-shot classifier."""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from .._utils.checks import MOST_THREADS, check_folder, check_path
from .._utils.distributed import from_first, is_first, processes
from .._utils.locks import locked
from .._utils.names import unknown
from .._utils.printable import printable
from .._utils.run_folder import RunFolder
from ..evaluation import Evaluation
from ..interop.yacs import Translation, translate_yacs
from ..methods.registry import TUNERS
from ..runners import Runner, connected
from ..tuning.config import as_dict, read_config
from ..tuning.renamed import renamed_config
from .parser import Parser, runner_in
from .seeds import SeedsFolder, check_seeds, run_seeds
from .tune_parser import DATA_KEYS, JOB_KEYS, OTHER_KEYS, tune_parser
from .tune_run import check_data, check_job, new_folder, run_job


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
    own = {k: v for k, v in given.items() if k in JOB_KEYS}
    small = "data" not in {**foreign.job, **own}
    other = {} if small else {"shots": TUNERS[method].shots, "eval_eps": None}
    job = {**_defaults(parser), **other, **foreign.job, **own}
    apart = (*JOB_KEYS, *OTHER_KEYS)
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
            run_job(method, job, None, settings, out, resume=False, runner=runner)
        return 0
    _check_one_process()
    for name in ("seed", "data_seed"):
        if name in given:
            raise ValueError(f"--seeds sets the seed and the data_seed of each run: drop --{name}")
    if "seed" in read:
        raise ValueError("--seeds sets the seed of each run: drop seed from the settings file")
    check_job(job)
    check_data(job)
    check_seeds(given["seeds"])
    out = out or new_folder(method)
    seeds = SeedsFolder.begin(out, method, given["seeds"], job, settings)
    with connected(runner):
        return run_seeds(seeds, partial(run_job, runner=runner))


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


def _defaults(parser: Parser) -> dict[str, Any]:
    values = parser.get_defaults().as_dict()
    return {k: values.get(k) for k in JOB_KEYS}


def _check_one_process() -> None:
    if processes() > 1:
        raise ValueError(
            f"--seeds needs one process, got {processes()}: start a run for each seed, or start "
            "it without torchrun"
        )


# ---- resuming ------------------------------------------------------------------------------------


def _resume(method: str, given: Mapping[str, Any], folder: Path, runner: Runner) -> int:
    extra = sorted(set(given) - {"resume"})
    if extra:
        raise ValueError(
            f"--resume takes all settings from the run's config.json; remove --{extra[0]}"
        )
    if is_first() and SeedsFolder.is_one(folder):
        _check_one_process()
        seeds = SeedsFolder.read(folder, method)
        _check_stored_job(method, seeds.job, JOB_KEYS, folder / "seeds.json")
        begin, go_on = (partial(call, runner=runner) for call in (run_job, _resume_one))
        return run_seeds(seeds, begin, go_on)
    _resume_one(method, folder, runner)
    return 0


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
    needed = [key for key in JOB_KEYS if source is None or key not in DATA_KEYS]
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
    return run_job(method, job, settings, {}, run.path, resume=True, source=source, runner=runner)


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
