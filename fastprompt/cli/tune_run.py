"""One run of ``fastprompt tune METHOD``: its checks, the tuning, the evaluation, the report."""

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .._utils.checks import Fraction, check_count, check_path, check_seed, parse_fraction
from .._utils.distributed import from_first, is_first
from .._utils.dtypes import AUTO, explain_auto
from .._utils.printable import printable
from .._utils.progress import tell
from .._utils.run_folder import RunFolder
from ..data.load import Data, load_data, load_recorded
from ..data.seen import seen_by
from ..evaluation import Evaluation
from ..evaluation.plan import plan_attacks, split_radii
from ..evaluation.search import check_search
from ..methods.registry import TUNERS
from ..report import write_report
from ..runners import HERE, Runner
from ..tuning.parts import check_processes
from ..tuning.tracking import split_trackers
from ..tuning.tuner import Tuner
from .parser import device_name, model_of
from .processes import leave
from .tune_parser import DATA_KEYS
from .words import classes_of, images_of

RADII = ("1/255", "2/255")  # evaluated in addition to the tuning eps


def run_job(
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
    check_job(job)
    if source is None:
        check_data(job)
    if out is not None and not resume and is_first():
        _check_free(out)
    tell(f"loading {job['data'] if source is None else source.get('name')} and {job['clip']}")
    data = _data(job) if source is None else load_recorded(source, download=job["download"])
    clip = model_of(job)  # after the data, which is refused sooner
    data = data.for_model(clip)
    given = {**(config or {}), **settings}
    own = TUNERS[method].settings_from(data.templates)
    own = {k: v for k, v in own.items() if given.get(k) is None}
    tuner = TUNERS[method](clip, data.classnames, config, **{**settings, **own})
    eps = (
        _radii(getattr(tuner.config, "eps", "4/255"))
        if job["eval_eps"] is None
        else job["eval_eps"]
    )
    images = len(data.train)  # unreadable images are found before there is a folder
    check_processes(tuner.config.batch)
    out = Path(from_first(lambda: str(out or new_folder(method))))
    drawn = f" ({data.source['few_shots']})" if "few_shots" in data.source else ""
    about = (
        f"{method} on {clip.name}, {data.name}: "
        f"{classes_of(len(data.classnames), data.arguments['classes'])}, {images} training "
        f"images{drawn}; run folder {out}"
    )
    print(printable(about), flush=True)
    if preset := {k: v for k, v in tuner.preset.items() if k not in given}:
        shown = {k: f"{255 * v:g}/255" if k == "eps" else v for k, v in preset.items()}
        print(f"preset: {', '.join(f'{k}={v}' for k, v in shown.items())}", flush=True)
    print(f"precision: {_precision(tuner, given)}", flush=True)
    if data.val_is_test:
        print(f"no validation: the validation images of {data.name} are its test images")
    began = time.perf_counter()
    facts = {"job": {k: v for k, v in job.items() if k not in DATA_KEYS}}
    first = is_first()
    # until the end: no other process may evaluate the run
    with RunFolder(out).locked("out") if first else contextlib.nullcontext():
        tuner.fit(
            data.train,
            None if data.val_is_test else data.val,
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


def new_folder(method: str) -> Path:
    """Create and return a new folder in ``runs``."""
    stem = Path("runs") / f"{method}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in range(1, 1000):
        folder = stem if number == 1 else stem.with_name(f"{stem.name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise FileExistsError(f"out: {stem} and its numbered siblings all exist; pass --out")


def check_job(job: Mapping[str, Any]) -> None:
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


def check_data(job: Mapping[str, Any]) -> None:
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
