"""``fastprompt evaluate RUN``: evaluate a run's prompts or a zero-shot classifier under attack."""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from .._utils.checks import MOST, MOST_STEPS, MOST_WORKERS, check_count, check_folder, check_path
from .._utils.files import read_json, write_json
from .._utils.locks import is_free, locked
from .._utils.names import unknown
from .._utils.progress import tell
from .._utils.run_folder import RunFolder
from .._utils.types import Model
from ..clip import bundled
from ..clip.frozen import FrozenCLIP
from ..data.load import Data, load_data, load_recorded
from ..data.seen import seen_by
from ..defenses import Defended, parse_defenses
from ..evaluation import Evaluation, evaluate
from ..evaluation.api import Scoring
from ..evaluation.calibration import calibration_lines
from ..evaluation.plan import plan_attacks
from ..evaluation.result import search_notes
from ..evaluation.search import check_search
from ..evaluation.spread import spread, spread_table
from ..methods.registry import TUNERS
from ..runners import Runner, connected
from ..tuning.identity import clip_of
from ..tuning.renamed import renamed, renamed_config
from ..tuning.tuner import Tuner
from .parser import (
    Parser,
    add_checks,
    add_model,
    add_names,
    add_ray,
    add_workers,
    check_only_resumed,
    device_name,
    model_of,
    runner_in,
)
from .seeds import check_seeds
from .words import images_of

_ABOUT = (
    "Evaluate clean and robust accuracy of a run's prompts and the zero-shot classifier; without "
    "a run, evaluate the zero-shot classifier of --clip on --data. The exit code is 1 if a check "
    "fails or an attack lacks usable gradients."
)
_RADII: Any = list[float | int | str] | float | int | str
# arguments of load_data; a run's own are used unless they are given
DATA = ("classes", "root", "download", "classnames", "templates", "on_error")
SURROGATE = "zero-shot"


def evaluate_parser() -> Parser:
    """Build the parser of the command."""
    parser = Parser(prog="fastprompt evaluate", description=_ABOUT, allow_abbrev=False)
    parser.add_argument(
        "run", type=str | None, nargs="?", help="run folder written by fastprompt tune"
    )
    add_model(parser)
    parser.add_argument("--data", type=str | None, help="data set; default: that of the run")
    parser.add_argument(
        "--classes",
        type=Literal["all", "base", "new"] | None,
        help="default: those of the run; all with --data",
    )
    parser.add_argument(
        "--root",
        type=str | None,
        help="root of CoOp's or torchvision's data sets, or of a manifest",
    )
    parser.add_argument(
        "--download", type=bool | None, help="let torchvision download the data set"
    )
    add_names(parser)
    parser.add_argument(
        "--attacks",
        type=list[str] | str,
        default="clean,pgd-20",
        help="comma-separated attacks, such as pgd-100,cw-100,autoattack,square; pgd-20@zero-shot "
        "crafts the images on the zero-shot classifier",
    )
    parser.add_argument("--eps", type=_RADII, default="4/255", help="radii, such as 1/255,4/255")
    parser.add_argument(
        "--limit", type=int | None, default=400, help="number of test images; null for all"
    )
    parser.add_argument("--batch", type=int, default=100)
    add_workers(parser)
    parser.add_argument(
        "--defenses",
        type=str | None,
        help="input defenses, such as jpeg-75,bits-4; classifiers are evaluated with and without "
        "them",
    )
    parser.add_argument(
        "--samples",
        type=int | None,
        help="gradients averaged in each attack step, for a randomized model",
    )
    add_checks(parser)
    parser.add_argument(
        "--scoring",
        type=Scoring,
        default="strict",
        help="strict: an image must be right clean and under each iterate; published: accuracy on "
        "the last iterates alone, as most published code evaluates",
    )
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="fit a temperature of the probabilities on the validation images; the run's own, for "
        "its own classes, is kept for fastprompt predict",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[0],
        help="one evaluation per seed; the seed sets the attacks' random numbers and which --limit "
        "images are drawn",
    )
    parser.add_argument(
        "--out",
        type=str | None,
        help="evaluation folder to write; default: a new one in RUN/evaluations",
    )
    parser.add_argument("--resume", type=str | None, help="evaluation folder to resume")
    add_ray(parser, "the attacks")
    return parser


def evaluate_run(arguments: Sequence[str]) -> int:
    """Run the command and return the exit code."""
    parser = evaluate_parser()
    given = parser.parse_args(list(arguments)).as_dict()
    runner = runner_in(given)
    resume = check_folder(given.pop("resume"), "--resume")
    if resume is not None:
        check_only_resumed(parser.parse_args(list(arguments), defaults=False).as_dict(), "job.json")
        given = _job_of(resume, parser)
    _check(given)
    with connected(runner):
        return _run(given, resume, runner)


def _run(given: dict[str, Any], resume: Path | None, runner: Runner) -> int:
    tell(f"loading {given['run'] or given['clip']}")
    models, data = _of_run(given) if given["run"] else _zero_shot(given)
    # only now: a model or data set that fails to load leaves no folder
    out = _new_folder(given) if resume is None else resume
    with locked(out, "--out" if resume is None else "--resume"):
        if resume is None:
            _check_free(out)  # again: another process may have begun in the meantime
            write_json(out / "job.json", given)
        try:
            results = _all(models, data, given, out, runner)
            _keep_temperature(given, results[0])
        except KeyboardInterrupt:
            print(f"to resume: fastprompt evaluate --resume {out}", file=sys.stderr)
            raise
    print(f"\n{_text(results)}")
    clip = getattr(models[SURROGATE], "clip", None)
    if seen := seen_by(getattr(clip, "name", ""), data.name):
        print(seen)
    print(f"\nevaluation folder: {out}")
    return 0 if all(result.trusted for result in results) else 1


def _all(
    models: dict[str, Model], data: Data, given: Mapping[str, Any], out: Path, runner: Runner
) -> list[Evaluation]:
    """Run the evaluation once per seed."""
    if given["defenses"]:
        models |= _defended(models, given["defenses"])
    seeds = given["seeds"]
    folders = [out] if len(seeds) == 1 else [out / f"seed-{seed}" for seed in seeds]
    return [
        _evaluate(models, data, given, seed, folder, runner)
        for seed, folder in zip(seeds, folders, strict=True)
    ]


def _keep_temperature(given: Mapping[str, Any], result: Evaluation) -> None:
    """Write the temperature of the tuned classifier of the run's own classes to the run folder."""
    found = result.calibration.get("tuned")
    if found is None or given["run"] is None:
        return
    run = RunFolder(given["run"])
    names = result.data["classnames"]
    if names == run.read_config()["classnames"]:
        run.write_calibration({**found, "classnames": names})


# ---- arguments ---------------------------------------------------------------------------------


def _check(given: Mapping[str, Any]) -> None:
    """Check the arguments before anything is loaded or written."""
    check_folder(given["out"], "--out")
    if given["run"] is None and (given["data"] is None or given["out"] is None):
        raise ValueError(
            "run: pass a run folder; for a zero-shot classifier pass --clip, --data and --out"
        )
    check_seeds(given["seeds"])
    plan_attacks(given["attacks"], given["eps"], surrogates=[SURROGATE])
    check_count(given["batch"], "batch")
    check_count(given["workers"], "workers", least=0, most=MOST_WORKERS)
    for name, most in (("limit", MOST), ("samples", MOST_STEPS)):
        if given[name] is not None:
            check_count(given[name], name, most=most)
    for name in ("run", "data", "root", "image_weights", "pretrained"):
        if given[name] is not None:
            check_path(given[name], name)
    check_search(given["search_precision"], torch.device(device_name(given["device"])))
    if given["defenses"]:
        parse_defenses(given["defenses"])
    if given["run"] is not None:
        RunFolder(given["run"]).read_config()


def _new_folder(given: Mapping[str, Any]) -> Path:
    """Return the folder to write: that of ``--out``, or a new one in the run folder."""
    if given["out"] is not None:
        _check_free(Path(given["out"]))
        return Path(given["out"])
    above = Path(given["run"]) / "evaluations"
    above.mkdir(exist_ok=True)
    for number in range(1, 10_000):
        out = above / str(number)
        with contextlib.suppress(FileExistsError):
            out.mkdir()
            return out
    raise FileExistsError(f"out: {above} has no free folder number; pass --out")


def _check_free(out: Path) -> None:
    # an evaluation that failed before its first attack left only job.json: reuse its folder
    if not is_free(out, "job.json"):
        raise FileExistsError(f"out: {out} is not empty; --resume it or choose a new folder")


def _job_of(out: Path, parser: Parser) -> dict[str, Any]:
    """Read a stopped evaluation's arguments, checked as strictly as the command line."""
    if not (out / "job.json").exists():
        if (out / "progress.jsonl").exists():
            raise ValueError(
                f"--resume: {out} was not started by fastprompt evaluate; resume it in Python, "
                "with evaluate(..., resume=True), or with fastprompt tune METHOD --resume"
            )
        raise FileNotFoundError(f"--resume: {out} is not an evaluation folder; it has no job.json")
    job = read_json(out / "job.json")
    # earlier versions searched in the model's own precision
    job = {"search_precision": "own", **renamed(job)}
    known = {k: v for k, v in job.items() if v is not None}
    found: dict[str, Any] = parser.parse_object(known).as_dict()
    found.pop("ray")
    return found


# ---- models and data ---------------------------------------------------------------------------


def _of_run(given: Mapping[str, Any]) -> tuple[dict[str, Model], Data]:
    """Load the zero-shot and tuned classifiers, on the run's data set unless another is given."""
    config = renamed_config(RunFolder(given["run"]).read_config())
    if config["method"] not in TUNERS:
        raise unknown("method", config["method"], TUNERS)
    _check_model(given, config["clip"]["name"])
    data = data_of_run(given, config)
    tuner: Tuner = TUNERS[config["method"]].load(given["run"], _clip(given, config))
    if given["image_size"] not in (None, tuner.clip.image_size):
        raise ValueError(
            f"image_size must be that of the run's model, {tuner.clip.image_size}, got "
            f"{given['image_size']}; omit it"
        )
    data = data.for_model(tuner.clip)
    same = data.classnames == tuner.classnames
    tuned = tuner.classifier if same else tuner.classifier_for(data.classnames)
    precision = tuner.config.precision
    zero_shot = tuner.clip.zero_shot(data.classnames, data.templates, precision=precision)
    return {SURROGATE: zero_shot, "tuned": tuned}, data


def _check_model(given: Mapping[str, Any], name: str) -> None:
    """Refuse another model than the run's; `_of_run` checks ``image_size`` once it is loaded."""
    own = {"clip": (bundled.DEFAULT, name), "pretrained": (None,), "image_weights": (None,)}
    for option, accepted in own.items():
        if given[option] not in accepted:
            raise ValueError(
                f"run: {given['run']} is evaluated on its own model, {name}; omit --{option}, "
                f"got {given[option]!r}"
            )


def _clip(given: Mapping[str, Any], config: Mapping[str, Any]) -> FrozenCLIP | None:
    """Load the run's model on ``--device``; without it return None: the run loads its own model."""
    if given["device"] is None:
        return None
    if config["clip"]["source"] is None:
        raise ValueError(
            f"device: the run's model {config['clip']['name']!r} was not loaded by name; "
            "use fastprompt.evaluate in Python"
        )
    return clip_of(config, device_name(given["device"]))


def _zero_shot(given: Mapping[str, Any]) -> tuple[dict[str, Model], Data]:
    data = load_data(given["data"], **_given(given))
    clip = model_of(given)
    data = data.for_model(clip)
    return {SURROGATE: clip.zero_shot(data.classnames, data.templates)}, data


def _given(given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: given[key] for key in DATA if given[key] is not None}


def data_of_run(given: Mapping[str, Any], config: Mapping[str, Any]) -> Data:
    """Load the data of ``--data``, else that of the run; the options override the run's."""
    source, job = config.get("data") or {}, config.get("job")
    own = source.get("type")
    if isinstance(job, Mapping) and job.get("data"):  # of an earlier version
        source = {**job, "name": job["data"], "seed": job.get("data_seed")}
    source = {key: value for key, value in source.items() if value is not None}
    if given["data"] is not None:  # of the run's arguments only the place is that of other data
        source = {key: source[key] for key in ("root", "directory") if key in source}
        return load_recorded(source, name=given["data"], **_given(given))
    if "name" in source:
        return load_recorded(source, **_given(given))
    why = "does not record its data set"
    if own:
        why = f"was tuned on a data set of your own ({own}), which it cannot load again"
    raise ValueError(f"data: {given['run']} {why}; pass --data")


def _defended(models: Mapping[str, Model], names: str) -> dict[str, Model]:
    return {
        f"{name} + {names}": Defended(model, *parse_defenses(names))
        for name, model in models.items()
    }


# ---- evaluation --------------------------------------------------------------------------------


def _evaluate(
    models: Mapping[str, Model],
    data: Data,
    given: Mapping[str, Any],
    seed: int,
    folder: Path,
    runner: Runner,
) -> Evaluation:
    return evaluate(
        models,
        data.test,
        given["attacks"],
        given["eps"],
        batch=given["batch"],
        limit=given["limit"],
        workers=given["workers"],
        samples=given["samples"],
        surrogates={SURROGATE: models[SURROGATE]},
        sanity=given["sanity"],
        search_precision=given["search_precision"],
        confirm=given["confirm"],
        scoring=given["scoring"],
        calibrate=data.val if given["calibrate"] else None,
        seed=seed,
        name=data.name,
        out=folder,
        resume=True,  # in a new folder this starts from the beginning
        runner=runner,
    )


def _text(results: Sequence[Evaluation]) -> str:
    """Format the table, the reasons for distrust and a legend."""
    if len(results) == 1:
        table = results[0].table()
    else:
        reasons = [why for result in results for why in result.reasons]
        notes = search_notes([row for result in results for row in result.rows])
        table = spread_table(spread(results), reasons, notes)
    checks = [s["verdict"] for result in results for s in result.sanity]
    counted = ", ".join(f"{checks.count(v)} {v}" for v in ("passed", "failed", "skipped"))
    lines = [line for result in results for line in calibration_lines(result.calibration)]
    table = "\n\n".join([table, *(["\n".join(lines)] if lines else [])])
    return (
        f"{table}\n\naccuracy on {images_of(results[0])} with 95 % intervals; checks: {counted}\n"
        "adaptive: gradients of the whole classifier; black-box: its logits only; transfer: made "
        "on another model"
    )
