"""Finish the cells of a plan: tune, evaluate, and write a run folder for each."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from .._utils.dtypes import AUTO, multiplies_bf16
from .._utils.files import is_temporary, write_bytes
from .._utils.hashing import digest_json
from .._utils.locks import LOCK
from .._utils.progress import Progress
from ..data.dataset import content_of
from ..evaluation import Evaluation, evaluate
from ..evaluation.units import describe
from ..methods.registry import TUNERS
from ..runners import HERE, Runner
from ..tuning.tuner import Tuner
from .cells import Cell, Judged, slug
from .costs import cost_of
from .plan import Plan
from .scoring import STRICT

Finish = Callable[[int], tuple[list[Evaluation], float]]
Files = dict[str, bytes]  # by path in the folder


def is_finished(cell: Cell, path: Path) -> bool:
    """Return whether a cell's folder has all its evaluations."""
    return all(result_file(path, judged).exists() for judged in cell.judged)


@contextmanager
def finishing(
    plan: Plan, paths: Sequence[Path], runner: Runner, progress: bool
) -> Iterator[Finish]:
    """Yield a function that finishes the next cell, by its number, in its folder of ``paths``.

    It returns the evaluations, and the seconds that the cell has taken where it was computed.
    """
    for path in paths:
        _tidy(path)
    if runner is HERE:
        yield lambda number: _timed(plan, plan.cells[number], paths[number], progress)
        return
    left = [n for n, path in enumerate(paths) if not is_finished(plan.cells[n], path)]
    passes = {n: cost_of(plan, plan.cells[n]).passes for n in left}
    with (
        runner.team(Cells(plan), plan.clip.device) as team,
        Progress(sum(passes.values()), "protocol", "pass", show=progress) as bar,
    ):
        coming = team.each((CellTask(n, _files(paths[n])) for n in left), bar)

        def finish(number: int) -> tuple[list[Evaluation], float]:
            seconds = 0.0
            if number in passes:
                files, seconds = next(coming)
                _put(paths[number], files)
                bar.update(passes[number])
            return _timed(plan, plan.cells[number], paths[number], False)[0], seconds

        yield finish


# ---- on workers --------------------------------------------------------------------------------


@dataclass(frozen=True)
class CellTask:
    """A cell by its number in the plan, and what its folder holds of a run that was stopped."""

    number: int
    files: Files


class Cells:
    """Finishes cells, each in a temporary folder of the worker; sent to workers with the model."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def title(self, task: CellTask) -> str:
        """Return the cell in words."""
        return self.plan.cells[task.number].title

    def facts(self) -> dict[str, str]:
        """Return hashes of the model, the settings and some images of each data set.

        Also whether the device multiplies bfloat16, where a cell chooses its precision by that.
        """
        plan, clip = self.plan, self.plan.clip
        settings = {k: v for k, v in plan.facts.items() if k != "directory"}
        facts = {
            "model": digest_json(describe(clip.model)),
            "settings": digest_json(settings),
            **{f"data {name!r}": content_of(plan.load(name).test) for name in plan.sets},
        }
        asked = any(config.precision == AUTO for config in plan.configs.values())
        if asked or settings["scoring"] == STRICT:  # whose attacks may search in bfloat16
            facts["bfloat16 units"] = "yes" if multiplies_bf16(clip.device) else "no"
        return facts

    def __call__(self, task: CellTask) -> tuple[Files, float]:
        cell = self.plan.cells[task.number]
        with tempfile.TemporaryDirectory(prefix="fastprompt-") as place:
            path = Path(place) / cell.folder
            for name, content in task.files.items():
                write_bytes(path / name, content)
            seconds = _timed(self.plan, cell, path, False)[1]
            return _files(path), seconds


def _files(path: Path) -> Files:
    """Return the files of a cell's folder."""
    found = [p for p in sorted(path.rglob("*")) if p.is_file() and p.name != LOCK]
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in found if not is_temporary(p)}


def _put(path: Path, files: Files) -> None:
    """Let a folder have these files, all at once; see `_tidy` for a stop in between."""
    new, old = _beside(path)
    for name, content in files.items():
        write_bytes(new / name, content)
    if path.exists():
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _tidy(path: Path) -> None:
    """Finish or undo what a stop of `_put` has left."""
    new, old = _beside(path)
    if old.exists() and not path.exists():
        new.rename(path)  # it is whole: otherwise the old one would be in place
    for left in (new, old):
        if left.exists():
            shutil.rmtree(left)


def _beside(path: Path) -> tuple[Path, Path]:
    return path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")


# ---- a cell ------------------------------------------------------------------------------------


def _timed(plan: Plan, cell: Cell, path: Path, progress: bool) -> tuple[list[Evaluation], float]:
    began = time.monotonic()
    return _finish(plan, cell, path, progress), time.monotonic() - began


def result_file(path: Path, judged: Judged) -> Path:
    """Return the file of an evaluation in a cell's folder."""
    return path / "evaluations" / slug(judged.column or judged.classes) / "result.json"


def _finish(plan: Plan, cell: Cell, path: Path, progress: bool) -> list[Evaluation]:
    """Return the evaluations of a cell; those that are not in its folder are made."""
    tuner, out = None, []
    for judged in cell.judged:
        result = result_file(path, judged)
        if result.exists():
            out.append(Evaluation.load(result))
            continue
        if cell.tuned and tuner is None:
            tuner = _tuned(plan, cell, path, progress)
        out.append(_judge(plan, cell, judged, tuner, result.parent, progress))
    return out


def _tuned(plan: Plan, cell: Cell, path: Path, progress: bool) -> Tuner:
    """Tune, or resume the tuning; validation images are read only if they decide something."""
    assert cell.classes is not None
    assert cell.seed is not None
    data = plan.load(cell.data, cell.classes, shots=cell.shots, seed=cell.seed)
    config = replace(plan.config_of(cell), seed=cell.seed)
    own = TUNERS[cell.method].settings_from(data.templates)
    config = replace(config, **{k: v for k, v in own.items() if getattr(config, k) is None})
    decides = config.keep == "best" or config.patience is not None
    val = data.val if decides and not data.val_is_test else None
    tuner = TUNERS[cell.method](plan.clip, data.classnames, config)
    return tuner.fit(data.train, val, path, resume=True, progress=progress)


def _judge(
    plan: Plan, cell: Cell, judged: Judged, tuner: Tuner | None, out: Path, progress: bool
) -> Evaluation:
    facts, data = plan.facts, plan.load(judged.data, judged.classes)
    names = data.classnames
    model = (
        plan.clip.zero_shot(names, data.templates) if tuner is None else tuner.classifier_for(names)
    )
    attacks, eps = plan.judging(cell.method)
    return evaluate(
        {cell.method: model},
        data.test,
        attacks,
        eps,
        batch=facts["batch"],
        limit=facts["limit"],
        workers=facts.get("workers", 0),
        sanity=facts["sanity"],
        scoring="strict" if facts["scoring"] == "strict" else "published",
        name=plan.labels[judged.data],
        out=out,
        resume=True,
        progress=progress,
    )
