"""Runs over several seeds: one run folder per seed, then mean and spread."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from .._utils.checks import check_seed, shown
from .._utils.files import read_json, write_json
from .._utils.locks import is_free, locked
from ..evaluation import Evaluation
from ..evaluation.result import search_notes
from ..evaluation.spread import spread, spread_table
from ..methods.registry import TUNERS
from ..report import write_report
from ..tuning.renamed import renamed, renamed_job

Run = Callable[..., Evaluation]


@dataclass(frozen=True)
class SeedsFolder:
    """Folder of runs that differ only in their seeds, listed in ``seeds.json``.

    Attributes:
        path: the folder; the run with seed N is in ``seed-N``.
        method, seeds, job, settings: the arguments of the runs.
    """

    path: Path
    method: str
    seeds: list[int]
    job: dict[str, Any]
    settings: dict[str, Any]

    @staticmethod
    def is_one(path: str | Path) -> bool:
        """Return whether ``path`` is such a folder."""
        return (Path(path) / "seeds.json").exists()

    @classmethod
    def begin(
        cls,
        path: Path,
        method: str,
        seeds: Sequence[int],
        job: Mapping[str, Any],
        settings: Mapping[str, Any],
    ) -> Self:
        """Create the folder.

        Raises:
            ValueError: see `check_seeds`.
            FileExistsError: the folder is not empty.
            BlockingIOError: another process is writing to it.
        """
        check_seeds(seeds)
        for seed in seeds:  # reject invalid settings before anything is written
            TUNERS[method].Config(**{**settings, "seed": seed})
        cls._check_free(path)
        folder = cls(path, method, list(seeds), dict(job), dict(settings))
        facts = {k: v for k, v in vars(folder).items() if k != "path"}
        with locked(path, "out"):
            cls._check_free(path)  # again: another process may have begun in the meantime
            write_json(path / "seeds.json", facts)
        return folder

    @classmethod
    def _check_free(cls, path: Path) -> None:
        if not is_free(path):
            remedy = "resume it, or choose" if cls.is_one(path) else "choose"
            raise FileExistsError(f"out: {path} is not empty: {remedy} a new folder")

    @classmethod
    def read(cls, path: str | Path, method: str) -> Self:
        """Read an existing folder.

        Raises:
            ValueError: the folder is damaged or of another method.
        """
        file = Path(path) / "seeds.json"
        facts = read_json(file)
        kinds = {"method": str, "seeds": list, "job": dict, "settings": dict}
        for name in sorted(kinds.keys() | facts.keys()):
            if name not in kinds or not isinstance(facts.get(name), kinds[name]):
                raise ValueError(
                    f"{file} has an invalid {name}; it is damaged: start the runs again"
                )
        if not facts["seeds"] or not all(type(s) is int and s >= 0 for s in facts["seeds"]):
            raise ValueError(f"{file} has invalid seeds; it is damaged: start the runs again")
        if facts["method"] != method:
            raise ValueError(f"--resume: {path} holds runs of {facts['method']!r}, not {method!r}")
        today = {"job": renamed_job(facts["job"]), "settings": renamed(facts["settings"])}
        return cls(Path(path), **{**facts, **today})


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise ValueError unless the seeds are distinct and in range."""
    for seed in seeds:
        check_seed(seed, "seeds")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be distinct, got {shown(list(seeds))}")


def run_seeds(folder: SeedsFolder, run: Run, resume: Run | None = None) -> int:
    """Finish the runs, print and write mean and spread, and return the exit code."""
    with locked(folder.path, "--out" if resume is None else "--resume"):
        try:
            results = _each(folder, run, resume)
        except KeyboardInterrupt:
            print(f"to resume all seeds: --resume {folder.path}", file=sys.stderr)
            raise
        rows = spread(results)
        notes = search_notes([row for result in results for row in result.rows])
        write_json(folder.path / "summary.json", {"seeds": folder.seeds, "rows": rows})
    many = "1 seed" if len(folder.seeds) == 1 else f"{len(folder.seeds)} seeds"
    table = spread_table(rows, notes=notes)
    print(f"\nmean over {many}, with the range (minimum to maximum)\n\n{table}")
    print(f"\nrun folders: {folder.path}")
    return 0


def _each(folder: SeedsFolder, run: Run, resume: Run | None) -> list[Evaluation]:
    """Return the evaluation of every seed: read it if finished, else run or resume it."""
    results = []
    for seed in folder.seeds:
        path = folder.path / f"seed-{seed}"
        if resume is not None and (path / "result.json").exists():
            results.append(Evaluation.load(path / "result.json"))
            with locked(path, "--resume"):
                write_report(path)  # which may have been interrupted
        elif resume is not None and (path / "config.json").exists():
            results.append(resume(folder.method, path))
        else:
            job, settings = {**folder.job, "data_seed": seed}, {**folder.settings, "seed": seed}
            results.append(run(folder.method, job, None, settings, path, resume=False))
    return results
