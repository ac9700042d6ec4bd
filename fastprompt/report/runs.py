"""Reading and validating the files of run folders."""

import logging
import re
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

log = logging.getLogger(__name__)

_RESULTS = (  # an evaluation with several seeds has a folder per seed
    *("result.json", "seed-*/result.json"),
    *("evaluations/*/result.json", "evaluations/*/seed-*/result.json"),
)


@dataclass(frozen=True)
class Source:
    """One evaluation.

    Attributes:
        run: name of the run in the report.
        name: the evaluation's folder in ``evaluations``, with the seed's subfolder if any; empty
            for the run's own result.
        folder: the folder of ``result.json``.
        evaluation: the content of ``result.json``.
    """

    run: str
    name: str
    folder: Path
    evaluation: Evaluation

    @property
    def seed(self) -> int | None:
        """The seed of the evaluation, None if it is not known."""
        return _seed(self.evaluation.how.get("seed"))

    @cached_property
    def images(self) -> tuple[Any, ...]:
        """Identifies the images; equal for evaluations that can be compared."""
        data = self.evaluation.data
        # without a draw of shots, the seed of the draw changes no image
        fingerprint = re.sub(r"/shots=None/seed=\d+", "", data.get("fingerprint") or "")
        return fingerprint, data.get("n"), tuple(data.get("indices") or ())

    def examples(self) -> dict[str, Tensor]:
        """Return the saved clean and adversarial images; empty if there is no such file."""
        path = self.folder / "examples.safetensors"
        if path.exists():
            return read_tensors(path, "examples")[0]
        log.warning(
            "report: the pictures of %s are left out, because %s does not exist; evaluate the run "
            "again to show them",
            *(self.run, path),
        )
        return {}


@dataclass(frozen=True)
class Run:
    """Attributes:

    name: the folder's name, preceded by those of its parents if another run has the same name.
    folder: the folder.
    sources: its evaluations.
    metrics: one dict per epoch.
    config: method, settings and model; empty for an evaluation without a run.
    """

    name: str
    folder: Path
    sources: list[Source]
    metrics: list[dict[str, Any]]
    config: dict[str, Any]

    @property
    def method(self) -> str:
        """The tuning method; empty if it is not known."""
        method = self.config.get("method")
        return method if isinstance(method, str) else ""

    @property
    def model(self) -> str:
        """The name of the CLIP model; empty if it is not known."""
        name = self._part("clip").get("name")
        return name if isinstance(name, str) else ""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of tuning; empty if they are not known."""
        return self._part("config")

    @property
    def data(self) -> dict[str, Any]:
        """The arguments of the training data, such as ``name`` and ``seed``; empty if unknown."""
        job, data = self._part("job"), self._part("data")
        if "data" in job:  # of `fastprompt tune`
            names = {"data": "name", "shots": "shots", "classes": "classes", "data_seed": "seed"}
            return {name: job.get(key) for key, name in names.items()}
        return data if "name" in data else {}

    @property
    def seeds(self) -> tuple[int | None, int | None]:
        """The seeds of tuning and of the few-shot draw; None if they are not known."""
        return _seed(self.settings.get("seed")), _seed(self.data.get("seed"))

    def _part(self, name: str) -> dict[str, Any]:
        found = self.config.get(name)
        return found if isinstance(found, dict) else {}


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Read the runs in some folders; a folder of several seeds adds all of its runs.

    Raises:
        ValueError: no folder is given, or a file in one is damaged or in another format.
        FileNotFoundError: a folder does not exist or has no result.
    """
    paths = [path for folder in folders for path in _expand(Path(folder))]
    paths = list({path.resolve(): path for path in paths}.values())
    if not paths:
        raise ValueError("runs must not be empty; pass a run folder")
    runs = [_read(path, name) for path, name in zip(paths, _names(paths), strict=True)]
    check_one_scoring([source.evaluation for run in runs for source in run.sources])
    return runs


def check_one_scoring(evaluations: Sequence[Evaluation]) -> str:
    """Return how all evaluations score; raise ValueError if some are strict, some published."""
    found = {e.scoring: e.data.get("name") or "images" for e in evaluations}
    if len(found) > 1:
        (one, first), (other, second) = found.items()
        raise ValueError(
            f"runs must be scored in one way: there are {one} results (on {first}) and {other} "
            f"results (on {second}); make a table of each"
        )
    return next(iter(found), "strict")


def _seed(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _expand(folder: Path) -> list[Path]:
    if not folder.is_dir():
        what = "is a file; pass its folder" if folder.exists() else "is not a folder"
        raise FileNotFoundError(f"runs: {folder} {what}")
    if not (folder / "seeds.json").exists():
        return [folder]
    seeds = read_json(folder / "seeds.json").get("seeds")
    if not isinstance(seeds, list) or not all(isinstance(seed, int) for seed in seeds):
        raise ValueError(f"{folder / 'seeds.json'} is damaged; pass the run folders")
    return [folder / f"seed-{seed}" for seed in seeds]


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the folders' names, preceded by their parents' if they are not unique."""
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
            f"{folder} has no result.json; `fastprompt evaluate {folder}` creates one"
        )
    sources = [
        Source(name, _name(path.parent.relative_to(folder)), path.parent, _load(path))
        for path in found
    ]
    above = folder.resolve().parent
    home = above.parent if above.name == "evaluations" else folder  # an evaluation of a run
    config = RunFolder(home).config_file
    return Run(
        name,
        folder,
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
        raise ValueError(f"{path}: {where} is damaged; evaluate the run again")
    if not found.rows:
        raise ValueError(f"{path} has no rows; evaluate the run again")
    return found
