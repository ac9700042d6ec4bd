"""What run folders hold, read and checked."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from .._utils.files import read_json, read_tensors
from .._utils.run_folder import RunFolder
from ..evaluation import Evaluation
from ..tuning.renamed import renamed_config
from .schema import damage

_RESULTS = (  # an evaluation of several seeds has a folder for each
    *("result.json", "seed-*/result.json"),
    *("evaluations/*/result.json", "evaluations/*/seed-*/result.json"),
)


@dataclass(frozen=True)
class Source:
    """One evaluation.

    Attributes:
        run: the run's name in the report.
        name: the evaluation's folder in ``evaluations``, and the seed's in there; empty for the
            run's own result.
        folder: where ``result.json`` lies.
        evaluation: what it holds.
    """

    run: str
    name: str
    folder: Path
    evaluation: Evaluation

    @cached_property
    def images(self) -> tuple[Any, ...]:
        """Which images were looked at: equal for evaluations that can be compared."""
        data = self.evaluation.data
        return data.get("fingerprint"), data.get("n"), tuple(data.get("indices") or ())

    def examples(self) -> dict[str, Tensor]:
        """The kept images, attacked ones among them; none if there is no such file."""
        path = self.folder / "examples.safetensors"
        return read_tensors(path, "examples")[0] if path.exists() else {}


@dataclass(frozen=True)
class Run:
    """Attributes:

    name: in the report, the folder's.
    sources: its evaluations.
    metrics: one dict an epoch.
    config: method, settings, model; empty for a bare evaluation.
    """

    name: str
    sources: list[Source]
    metrics: list[dict[str, Any]]
    config: dict[str, Any]


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """The runs in some folders; a folder of several seeds stands for all of its runs.

    Raises:
        ValueError: no folder is named, or a file in one is damaged or foreign.
        FileNotFoundError: there is no such folder, or no result in it.
    """
    paths = [path for folder in folders for path in _expand(Path(folder))]
    paths = list({path.resolve(): path for path in paths}.values())
    if not paths:
        raise ValueError("runs must not be empty: name a run folder")
    return [_read(path, name) for path, name in zip(paths, _names(paths), strict=True)]


def _expand(folder: Path) -> list[Path]:
    if not folder.is_dir():
        what = "is a file: name its folder" if folder.exists() else "is no folder"
        raise FileNotFoundError(f"runs: {folder} {what}")
    if not (folder / "seeds.json").exists():
        return [folder]
    seeds = read_json(folder / "seeds.json").get("seeds")
    if not isinstance(seeds, list):
        raise ValueError(f"{folder / 'seeds.json'} is damaged: name the runs themselves")
    return [folder / f"seed-{seed}" for seed in seeds]


def _names(paths: Sequence[Path]) -> list[str]:
    """The folders' own names, with the parents' where they are not distinct."""
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if max(Counter(names).values()) == 1:
            break
    return names


def _read(folder: Path, name: str) -> Run:
    found = [path for form in _RESULTS for path in sorted(folder.glob(form))]
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no result.json: `fastprompt evaluate {folder}` makes one"
        )
    sources = [
        Source(name, _name(path.parent.relative_to(folder)), path.parent, _load(path))
        for path in found
    ]
    config = folder / "config.json"
    return Run(
        name,
        sources,
        RunFolder(folder).read_metrics(),
        renamed_config(read_json(config)) if config.exists() else {},
    )


def _name(folder: Path) -> str:
    return "/".join(part for part in folder.parts if part != "evaluations")


def _load(path: Path) -> Evaluation:
    found = Evaluation.load(path)
    where = damage(vars(found))
    if where is not None:
        raise ValueError(f"{path}: {where} is damaged: evaluate again")
    if not found.rows:
        raise ValueError(f"{path} has no rows: evaluate again")
    return found
