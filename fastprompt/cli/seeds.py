"""Several seeds in one command: a run folder for each, then mean and spread."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from .._utils.checks import check_count
from .._utils.files import read_json, write_json
from ..evaluation import Evaluation
from ..evaluation.spread import spread, spread_table
from ..methods.registry import TUNERS
from ..tuning.config import read_config
from ..tuning.renamed import renamed

Run = Callable[..., Evaluation]


@dataclass(frozen=True)
class SeedsFolder:
    """A folder of runs that differ in their seeds alone; ``seeds.json`` says which.

    Attributes:
        path: the folder; run N lies in ``seed-N``.
        method, seeds, job, settings: what is run.
    """

    path: Path
    method: str
    seeds: list[int]
    job: dict[str, Any]
    settings: dict[str, Any]

    @staticmethod
    def is_one(path: str | Path) -> bool:
        """Whether ``path`` is such a folder."""
        return (Path(path) / "seeds.json").exists()

    @classmethod
    def begin(
        cls,
        path: Path,
        method: str,
        seeds: Sequence[int],
        job: Mapping[str, Any],
        config: str | None,
        settings: Mapping[str, Any],
    ) -> Self:
        """A new one; the settings file is read now, so that a later change of it does no harm.

        Raises:
            ValueError: seeds that are not distinct, or out of range.
            FileExistsError: the folder holds something else.
        """
        read = {} if config is None else read_config(TUNERS[method].Config, config)
        if "seed" in read:
            raise ValueError("--seeds sets the seed of each run: drop seed from the settings file")
        for seed in seeds:
            check_count(seed, "seeds", least=0)
            # what the settings refuse is told before anything is written
            TUNERS[method].Config(**{**read, **settings, "seed": seed})
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds must be distinct, got {list(seeds)}")
        if path.exists() and any(path.iterdir()):
            remedy = "resume it, or choose" if cls.is_one(path) else "choose"
            raise FileExistsError(f"out: {path} is not empty: {remedy} a new folder")
        folder = cls(path, method, list(seeds), dict(job), {**read, **settings})
        facts = {k: v for k, v in vars(folder).items() if k != "path"}
        write_json(path / "seeds.json", facts)
        return folder

    @classmethod
    def read(cls, path: str | Path, method: str) -> Self:
        """One that was begun.

        Raises:
            ValueError: damaged, or of another method.
        """
        file = Path(path) / "seeds.json"
        facts = read_json(file)
        if set(facts) != {"method", "seeds", "job", "settings"}:
            raise ValueError(f"{file} is damaged: begin the runs anew")
        if facts["method"] != method:
            raise ValueError(f"--resume: {path} holds runs of {facts['method']!r}, not {method!r}")
        given: Any = {name: renamed(facts.pop(name)) for name in ("job", "settings")}
        return cls(Path(path), **facts, **given)


def run_seeds(folder: SeedsFolder, run: Run, resume: Run | None = None) -> int:
    """Run what is not done yet, then print and write mean and spread; returns the exit code."""
    try:
        results = _each(folder, run, resume)
    except KeyboardInterrupt:
        print(f"all seeds go on with --resume {folder.path}", file=sys.stderr)
        raise
    rows = spread(results)
    write_json(folder.path / "summary.json", {"seeds": folder.seeds, "rows": rows})
    many = "1 seed" if len(folder.seeds) == 1 else f"{len(folder.seeds)} seeds"
    print(f"\nmean over {many}, with their range\n\n{spread_table(rows)}")
    print(f"\nrun folders: {folder.path}")
    return 0


def _each(folder: SeedsFolder, run: Run, resume: Run | None) -> list[Evaluation]:
    """Every seed's evaluation: read where it is done, else run."""
    results = []
    for seed in folder.seeds:
        path = folder.path / f"seed-{seed}"
        if resume is not None and (path / "result.json").exists():
            results.append(Evaluation.load(path / "result.json"))
        elif resume is not None and (path / "config.json").exists():
            results.append(resume(folder.method, path))
        else:
            job, settings = {**folder.job, "data_seed": seed}, {**folder.settings, "seed": seed}
            results.append(run(folder.method, job, None, settings, path, resume=False))
    return results
