"""Run a plan, or resume it: one run folder per cell, then the tables."""

import contextlib
import errno
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .._utils.checks import check_flag, check_folder, shown
from .._utils.files import read_json, write_json
from .._utils.locks import is_free, locked
from .._utils.printable import printable
from ..evaluation import Evaluation
from ..runners import HERE, Runner, runner_of
from .cells import Cell, Judged
from .costs import cost_of
from .finishing import finishing, is_finished
from .page import write_page
from .plan import Plan, make_plan
from .results import Table, collect, words_of
from .tables import write_tables

FILE = "protocol.json"
FORMAT = 1
_FULL = (errno.ENOSPC, errno.EDQUOT)


def run(
    protocol: str,
    methods: Any = ("zero-shot", "coop", "apt"),
    data: Any = (),
    *,
    out: str | Path,
    resume: bool = False,
    progress: bool = True,
    runner: Runner | str | None = None,
    **options: Any,
) -> Table:
    """Run a protocol and return its table: `make_plan`, then `execute`; see these.

    Args:
        protocol, methods, data, **options: see `make_plan`.
        out, resume, progress, runner: see `execute`.
    """
    plan = make_plan(protocol, methods, data, **options)
    return execute(plan, out, resume=resume, progress=progress, runner=runner)


def execute(
    plan: Plan,
    out: str | Path,
    *,
    resume: bool = False,
    progress: bool = True,
    runner: Runner | str | None = None,
) -> Table:
    """Run the cells of a plan that are not finished, and write and return the table.

    Args:
        plan: see `make_plan`.
        out: folder to write: ``protocol.json``, a run folder for each cell in ``cells``, and, at
            the end, ``table.md``, ``table.csv``, ``table.tex`` and ``report.html``.
        resume: resume the plan in ``out``, which may have been killed at any moment. On the CPU,
            with the same number of threads, the result has the same bits as that of an
            uninterrupted one.
        progress: print a line for each cell, and show the progress in it.
        runner: ``"ray"`` or a `fastprompt.runners.Ray` runs each cell on a worker of a Ray cluster.
            This process writes a cell's folder when the cell is finished.

    Raises:
        FileExistsError: ``out`` holds this plan and ``resume`` is not set, or other files.
        ValueError: ``out`` holds another plan; the message says what differs.
        BlockingIOError: another process runs the plan in ``out``.
        OSError: the disk is full. What is finished stays; resume the plan later.
    """
    for name, flag in (("resume", resume), ("progress", progress)):
        check_flag(flag, name)
    runner = runner_of(runner)
    folder = check_folder(out, "out")
    if folder is None:
        raise TypeError(f"out must be a folder, got {shown(out)}")
    _check_free(folder)
    with _until_full(folder), locked(folder, "out"):
        _open(plan, folder, resume, getattr(runner, "threads", torch.get_num_threads()))
        table = collect(plan, _cells(plan, folder, progress, runner))
        write_tables(table, folder)
        write_page(table, folder)
    return table


# ---- the folder --------------------------------------------------------------------------------


def _check_free(folder: Path) -> None:
    if not (folder / FILE).exists() and not is_free(folder):
        raise FileExistsError(f"out: {folder} contains other files; choose a new folder")


def _open(plan: Plan, folder: Path, resume: bool, threads: int) -> None:
    """Write the plan, or compare it with the one that the folder holds."""
    if not (folder / FILE).exists():
        _check_free(folder)
        write_json(folder / FILE, {"format": FORMAT, "plan": plan.facts, "threads": threads})
        return
    check_plan(plan, folder)
    if not resume:
        raise FileExistsError(
            f"out: {folder} already holds this plan: resume it, or choose another"
        )


def check_plan(plan: Plan, folder: Path) -> None:
    """Raise ValueError if the folder holds another plan; the message says what differs."""
    stored, own = read_plan(folder)["plan"], json.loads(json.dumps(plan.facts))
    keys = [k for k in own.keys() | stored.keys() if k != "directory"]
    if other := sorted(k for k in keys if own.get(k) != stored.get(k)):
        said = "; ".join(
            f"{k} is {shown(stored.get(k))} there, {shown(own.get(k))} here" for k in other
        )
        raise ValueError(f"out: {folder} holds another plan: {said}; choose another folder")


def read_plan(folder: Path) -> dict[str, Any]:
    """Return the content of ``protocol.json``.

    Raises:
        FileNotFoundError: the folder holds no plan.
        ValueError: the file is damaged or has another format.
    """
    path = folder / FILE
    if not path.exists():
        raise FileNotFoundError(f"{folder} is not a protocol's folder: it has no {FILE}")
    found = read_json(path)
    if found.get("format") != FORMAT or not isinstance(found.get("plan"), dict):
        raise ValueError(
            f"{path} has format {found.get('format')!r}, but this version of fastprompt reads "
            f"{FORMAT}; start the protocol again"
        )
    return found


@contextlib.contextmanager
def _until_full(folder: Path) -> Iterator[None]:
    """Say how to go on after the disk was full."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        said = error.strerror or str(error)
        raise OSError(
            error.errno, f"{said}: the disk is full; free some space, then resume {folder}"
        ) from error


# ---- the cells ---------------------------------------------------------------------------------


def _cells(
    plan: Plan, folder: Path, progress: bool, runner: Runner
) -> Iterator[tuple[Cell, Judged, Evaluation]]:
    """Finish each cell and yield its evaluations; tell the time that is left."""
    passes = [cost_of(plan, cell).passes for cell in plan.cells]
    paths = [folder / "cells" / cell.folder for cell in plan.cells]
    began, done = time.monotonic(), 0
    with finishing(plan, paths, runner, progress) as finish:
        for number, cell in enumerate(plan.cells):
            fresh = not is_finished(cell, paths[number])
            title = f"[{number + 1}/{len(plan.cells)}] {printable(cell.title)}"
            if progress and fresh and runner is HERE:
                print(title, file=sys.stderr, flush=True)
            found, seconds = finish(number)
            done += passes[number] if fresh else 0
            if progress:
                left = sum(passes[number + 1 :]) * (time.monotonic() - began) / max(done, 1)
                took = f"{seconds:.0f} s" if fresh else "finished before"
                more = done and number + 1 < len(plan.cells)
                rest = f"; about {_words(left)} left" if more else ""
                print(f"{title}: {_short(found)}; {took}{rest}", file=sys.stderr, flush=True)
            for judged, evaluation in zip(cell.judged, found, strict=True):
                yield cell, judged, evaluation


def _words(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _short(found: list[Evaluation]) -> str:
    """Return the first evaluation's accuracies."""
    rows = found[0].rows
    return ", ".join(f"{words_of(r)} {100 * r['accuracy']:.1f} %" for r in rows)
