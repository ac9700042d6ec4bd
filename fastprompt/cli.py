"""The command line: ``fastprompt tune METHOD``, ``fastprompt doctor``."""

import contextlib
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from jsonargparse import ArgumentParser

from . import bundled
from ._checks import check_count, nearest, parse_fraction, unknown


class _Parser(ArgumentParser):
    """Errors in one line, with the nearest options offered."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        text = " ".join(str(message).split())
        for flag in dict.fromkeys(re.findall(r"--[A-Za-z_][\w-]*", text)):
            known = [o for a in self._actions for o in a.option_strings if o.startswith("--")]
            if flag not in known and "nrecognized" in text:
                text = f"unknown option {flag}: {nearest(flag, known)}"
                break
        print(f"error: {text}", file=sys.stderr)
        raise SystemExit(2)


_RADII: Any = list[float | int | str] | float | int | str | None


def _tune_parser(method: str) -> _Parser:
    from .tuners.registry import TUNERS

    tuner = TUNERS[method]
    about = (tuner.__doc__ or "").splitlines()[0]
    parser = _Parser(prog=f"fastprompt tune {method}", description=about, allow_abbrev=False)
    parser.add_argument("--clip", type=str, default=bundled.DEFAULT, help="model name")
    parser.add_argument("--pretrained", type=str | None, help="weight tag or checkpoint")
    parser.add_argument("--image_weights", type=str | None, help="file for the image tower alone")
    parser.add_argument("--device", type=str | None, help="default: a GPU if there is one")
    parser.add_argument("--data", type=str, default="patterns", help="data set, or image folder")
    parser.add_argument("--shots", type=int | Literal["all"], default="all", help="images a class")
    parser.add_argument("--classes", type=Literal["all", "base", "new"], default="all")
    parser.add_argument("--data_seed", type=int, default=0, help="of the few-shot draw")
    parser.add_argument("--root", type=str, default="data", help="where torchvision keeps data")
    parser.add_argument("--download", type=bool, default=False, help="let torchvision download")
    parser.add_argument("--out", type=str | None, help="run folder; default: a new one in runs/")
    parser.add_argument("--resume", type=str | None, help="run folder to go on with")
    parser.add_argument("--config", type=str | None, help="YAML or JSON file of the settings below")
    parser.add_argument(
        "--attacks",
        type=list[str] | str,
        default="clean,feature-pgd-40,pgd-20",
        help="of the evaluation, with commas between",
    )
    parser.add_argument("--eval_eps", type=_RADII, help="default: the tuning eps")
    parser.add_argument("--eval_limit", type=int | None, default=400, help="test images judged")
    parser.add_argument("--eval_batch", type=int, default=100)
    parser.add_argument("--track", type=bool, default=False, help="TensorBoard curves, too")
    parser.add_class_arguments(tuner.Config, help=f"settings of {method}")
    return parser


_JOB_KEYS = (
    *("clip", "pretrained", "image_weights", "device", "data", "shots", "classes", "data_seed"),
    *("root", "download", "attacks", "eval_eps", "eval_limit", "eval_batch", "track"),
)


def _tune(arguments: Sequence[str]) -> int:
    from .tuners.registry import TUNERS

    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: fastprompt tune METHOD [options]\nmethods: " + ", ".join(TUNERS))
        print("fastprompt tune METHOD --help lists the options")
        return 0 if arguments else 2
    method = arguments[0]
    if method not in TUNERS:
        raise unknown("method", method, TUNERS)
    parser = _tune_parser(method)
    given = parser.parse_args(list(arguments[1:]), defaults=False).as_dict()
    if given.get("resume"):
        return _resume(method, given)
    job = {**_defaults(parser), **{k: v for k, v in given.items() if k in _JOB_KEYS}}
    overrides = {k: v for k, v in given.items() if k not in (*_JOB_KEYS, "out", "resume", "config")}
    out = Path(given["out"]) if given.get("out") else None
    return _run(method, job, given.get("config"), overrides, out, resume=False)


def _new_folder(method: str) -> Path:
    """A folder of this run's own in ``runs``, claimed by making it."""
    stem = Path("runs") / f"{method}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in range(1, 1000):
        folder = stem if number == 1 else stem.with_name(f"{stem.name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise FileExistsError(f"out: {stem} and its numbered siblings all exist: name a folder")


def _defaults(parser: _Parser) -> dict[str, Any]:
    values = parser.get_defaults().as_dict()
    return {k: values.get(k) for k in _JOB_KEYS}


def _resume(method: str, given: Mapping[str, Any]) -> int:
    import torch

    from .runs import RunFolder

    extra = sorted(set(given) - {"resume"})
    if extra:
        raise ValueError(
            f"--resume takes all settings from the run's config.json: leave out --{extra[0]}"
        )
    run = RunFolder(given["resume"])
    config = run.read_config()
    if config["method"] != method:
        raise ValueError(f"--resume: {run.path} is a run of {config['method']!r}, not {method!r}")
    job = config.get("job")
    if not isinstance(job, Mapping):
        raise ValueError(f"--resume: {run.path} was not started from the command line")
    if missing := [key for key in _JOB_KEYS if key not in job]:
        raise ValueError(f"--resume: the job in {run.path / 'config.json'} lacks {missing[0]!r}")
    # what a person may have changed there is read as strictly as the command line
    _tune_parser(method).parse_object({k: v for k, v in job.items() if v is not None})
    threads = config.get("threads")
    if not isinstance(threads, int) or threads < 1:
        raise ValueError(f"--resume: {run.path / 'config.json'} has a bad threads: damaged")
    torch.set_num_threads(threads)  # for the same bits
    return _run(method, job, config["config"], {}, run.path, resume=True)


def _run(
    method: str,
    job: Mapping[str, Any],
    config: Any,
    overrides: Mapping[str, Any],
    out: Path | None,
    *,
    resume: bool,
) -> int:
    from .data import load_data
    from .evaluation.robust import plan_attacks
    from .loading import load_clip
    from .tuners.registry import TUNERS

    # what the evaluation would refuse is told before the work, not after
    given = job["eval_eps"]
    for radius in given if isinstance(given, list) else [given]:
        if radius is not None:
            parse_fraction(radius, "eval_eps", zero=True)
    plan_attacks(job["attacks"], 0.1 if given is None else given, 0)
    check_count(job["eval_batch"], "eval_batch")
    if job["eval_limit"] is not None:
        check_count(job["eval_limit"], "eval_limit")
    clip = load_clip(
        job["clip"],
        job["pretrained"],
        image_weights=job["image_weights"],
        device=_device(job["device"]),
    )
    data = load_data(
        job["data"],
        shots=job["shots"],
        seed=job["data_seed"],
        classes=job["classes"],
        image_size=clip.image_size,
        root=job["root"],
        download=job["download"],
    )
    tuner = TUNERS[method](clip, data.classnames, config, **overrides)
    eps = getattr(tuner.config, "eps", "4/255") if given is None else given
    out = out or _new_folder(method)
    print(
        f"{method} on {clip.name}, {data.name}: {len(data.classnames)} classes, "
        f"{len(data.train)} training images; run folder {out}",
        flush=True,
    )
    began = time.perf_counter()
    tuner.fit(data.train, data.val, out, resume=resume, job={"job": dict(job)}, track=job["track"])
    tuned = time.perf_counter()
    result = tuner.evaluate(
        data.test,
        job["attacks"],
        eps,
        templates=data.templates,
        limit=job["eval_limit"],
        batch=job["eval_batch"],
    )
    result.save(out / "result.json")
    n = result.rows[0]["n"]
    print(f"\n{result.table()}\n")
    print(
        f"accuracy on {n} test images with 95 % intervals; an adaptive attack goes through the "
        "prompts, a transfer attack does not see them"
    )
    print(f"tuned in {tuned - began:.0f} s, evaluated in {time.perf_counter() - tuned:.0f} s")
    print(f"run folder: {out}")
    return 0


def _device(name: str | None) -> str:
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError:
        raise ValueError(f"device must be such as cpu or cuda:0, got {name!r}") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: there is no GPU for {name!r} here: use cpu")
    return name


_COMMANDS = ("tune", "doctor")
_USAGE = """usage: fastprompt COMMAND [options]

commands:
  tune METHOD   tune prompts, then compare zero-shot and tuned accuracy
  doctor        versions, devices, kernels, the bundled models

fastprompt COMMAND --help tells more"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE)
        return 0 if arguments else 2
    command, rest = arguments[0], arguments[1:]
    try:
        if command == "tune":
            return _tune(rest)
        if command == "doctor":
            from .doctor import doctor

            return doctor(rest)
        raise unknown("command", command, _COMMANDS)
    except (ValueError, TypeError, OSError, RuntimeError, FloatingPointError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except SystemExit as done:  # argparse's way out, of --help and of errors
        return int(done.code or 0)
    except KeyboardInterrupt:
        print("stopped; go on with --resume and the run folder", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
