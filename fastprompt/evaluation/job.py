"""Run an evaluation: all models under all attacks, sanity checks, diagnostics and examples."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .._utils.locks import locked
from .._utils.progress import Progress
from .._utils.types import Model
from ..attacks import PGD
from ..data.dataset import evenly, fingerprint, source_of
from ..runners import HERE, Runner
from .calibration import calibrate
from .crafted import Shared
from .diagnostics import diagnose
from .examples import Examples
from .model_run import ModelRun
from .record import FELL, Record
from .result import Evaluation
from .sampling import Images, in_turn, random_numbers
from .sanity import (
    FULL,
    QUICK,
    Claim,
    Meter,
    Verdict,
    check_claims,
    check_model,
    check_rows,
    claims,
)
from .sanity.sample import ASSUMED_EPS, Sample
from .scoring import verdicts
from .search import Searched, search_facts
from .stages import How, Planned
from .units import Units, describe

Sanity = Literal["quick", "full", "off"]
_DIAGNOSED = 256  # number of images for the diagnostics
_STEPS = 10  # PGD steps for the diagnostics


@dataclass(frozen=True)
class Job:
    """One evaluation.

    Attributes:
        targets, other_targets: models and surrogates by name, with the models on which attacks
            search in their place.
        images: images on which the models are evaluated.
        plans: attacks at one radius each, by model; they differ only where ``hows`` differ.
        hows: attack settings by model; only those of randomized models differ.
        sanity: depth of the sanity checks.
        folder: output folder; None writes nothing.
        name: name of the image set in the result.
        val: validation images on which temperatures are fitted; None for no calibration.
        runner: where the attacks run; the checks and the calibration run in this process.
    """

    targets: Mapping[str, Searched]
    other_targets: Mapping[str, Searched]
    images: Images
    plans: Mapping[str, Sequence[Planned]]
    hows: Mapping[str, How]
    sanity: Sanity
    folder: Path | None
    name: str = ""
    val: Images | None = None
    runner: Runner = HERE

    @property
    def models(self) -> dict[str, Model]:
        """The evaluated models by name."""
        return {name: target.model for name, target in self.targets.items()}

    @property
    def surrogates(self) -> dict[str, Model]:
        """The surrogates by name."""
        return {name: target.model for name, target in self.other_targets.items()}

    def run(self, *, resume: bool, progress: bool) -> Evaluation:
        """Run the evaluation, skipping units that are already recorded."""
        with nullcontext() if self.folder is None else locked(self.folder, "out"):
            return self._run(resume, progress)

    def _run(self, resume: bool, progress: bool) -> Evaluation:
        path = self.folder and self.folder / "progress.jsonl"
        record = Record(path, self.about, resume=resume)
        examples = Examples(self.folder)
        passes = 1 + sum(len(attack.stages) for attack in self._plan)
        total = len(self.images.rows) * len(self.models) * passes
        with Progress(total, "evaluate", "img", show=progress) as bar:
            runs, rows = self._rows(record, examples, bar)
            sanity = []
            for run, own in zip(runs, rows, strict=True):
                sanity += [{"model": run.name, **asdict(v)} for v in self._check(run, own, bar)]
        labels = rows[0][0]["labels"]
        ordered = _side_by_side(rows)
        result = Evaluation(
            rows=ordered,
            sanity=sanity,
            data=self._data_facts(labels),
            models=self.described,
            how={**self.about["how"], "device": str(self.images.device), "sanity": self.sanity},
            diagnostics=self._diagnostics(labels),
            calibration=self._calibration(progress),
        )
        if self.folder is not None:
            self._write_examples(examples, runs, ordered)
            result.save(self.folder / "result.json")
        return result

    def _rows(
        self, record: Record, examples: Examples, bar: Progress
    ) -> tuple[list[ModelRun], list[list[dict[str, Any]]]]:
        """Run the clean evaluation and the attacks; return the rows of each model."""
        own = self.targets, self.other_targets, self.images, self.plans, self.hows
        units, shared = Units(*own, tell=bar.passes), Shared()
        with self.runner.team(units, self.images.device) as team:
            runs = [
                ModelRun(name, units, team, record, examples, shared, bar) for name in self.models
            ]
            cleans = [run.clean() for run in runs]
            self._share(shared, runs, cleans)
            examples.choose([[flag != FELL for flag in clean["flags"]] for clean in cleans])
            return runs, [
                [clean, *(run.attacked(attack, clean) for attack in self.plans[run.name])]
                for run, clean in zip(runs, cleans, strict=True)
            ]

    def _share(
        self, shared: Shared, runs: Sequence[ModelRun], cleans: Sequence[dict[str, Any]]
    ) -> None:
        """Collect the images of models for which an attack crafts the same ones."""
        every = any(attack.alone for attack in self._plan)
        for run, clean in zip(runs, cleans, strict=True):
            right = [p for p, flag in enumerate(clean["flags"]) if every or flag != FELL]
            parts = {run.made_on(a, stage) for a in self._plan for stage in a.stages}
            for made_on in parts - {None}:
                shared.add(made_on, right)

    # ---- identity ----------------------------------------------------------------------------

    @cached_property
    def described(self) -> dict[str, Any]:
        """How each model computes, and a hash of its weights."""
        return {name: describe(model) for name, model in self.models.items()}

    @cached_property
    def about(self) -> dict[str, Any]:
        """The facts that identify the evaluation when it resumes."""
        return {
            "models": self.described,
            "surrogates": {name: describe(model) for name, model in self.surrogates.items()},
            "data": {
                "fingerprint": fingerprint(self.images.data, self.images.rows),
                "rows": list(self.images.rows),
            },
            "attacks": [[a.name, a.eps, a.settings] for a in self._plan],
            "how": {
                **self._how.facts,
                "samples": {name: how.samples for name, how in self.hows.items()},
                **search_facts(self.targets, self.other_targets),
            },
            **({} if self.val is None else {"val": fingerprint(self.val.data)}),
        }

    @property
    def radius(self) -> float:
        """The largest radius, or ``ASSUMED_EPS`` if none is above 0."""
        return max((attack.eps for attack in self._plan), default=0.0) or ASSUMED_EPS

    @property
    def _plan(self) -> Sequence[Planned]:
        return next(iter(self.plans.values()))

    @property
    def _how(self) -> How:
        return next(iter(self.hows.values()))

    def _data_facts(self, labels: list[int]) -> dict[str, Any]:
        data = self.images.data
        names = getattr(data, "classnames", None)
        source = source_of(data)
        return {
            "name": self.name,
            "fingerprint": self.about["data"]["fingerprint"],
            "n": len(self.images.rows),
            "of": len(data),
            "indices": list(self.images.rows),
            "labels": labels,
            "classnames": None if names is None else list(names),
            "classes": source.get("classes"),
            "splits": source.get("splits"),
            "unreadable": getattr(data, "unreadable", 0) if "on_error" in source else 0,
        }

    # ---- sanity checks, diagnostics, examples ------------------------------------------------

    def _some(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return indices, pixels, labels of n evenly spaced images, as data sets may be sorted."""
        return self._read(evenly(n, len(self.images.rows)))

    def _read(self, places: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        ((indices, pixels, labels),) = self.images.read(places, len(places))
        return indices, pixels, labels

    def _looked_at(self, n: int, clean: str, claimed: Sequence[Claim]) -> list[int]:
        """Choose n images to check.

        If possible, half of them are robust, since masked gradients show on these, and the others
        are classified correctly when clean, since attacks only run on such images.
        """
        standing = next((claim.standing for claim in claimed if claim.standing), ())
        right = [place for place, flag in enumerate(clean) if flag != FELL]
        return in_turn((standing, n // 2), (right, n), (range(len(clean)), n))

    def _check(self, run: ModelRun, rows: Sequence[dict[str, Any]], bar: Progress) -> list[Verdict]:
        """Run the sanity checks of a model and its rows."""
        if self.sanity == "off":
            return []
        depth = QUICK if self.sanity == "quick" else FULL
        # an attack crafted on the model itself is white-box, not a transfer
        own = {f"transfer:{k}" for k, m in self.surrogates.items() if m is run.model}
        seen = [{**row, "path": "adaptive"} if row["path"] in own else row for row in rows]
        # these checks take an image that stands to be one that is also right when clean
        claimed = [] if run.how.alone else claims(seen)
        spent = sum(row["forwards"] + row["gradients"] for row in rows)
        n = depth.affords(spent, run.how.samples)
        indices, pixels, labels = self._read(self._looked_at(n, rows[0]["flags"], claimed))
        told = _Told(bar, run.name)
        sample = Sample(
            run.model,
            pixels,
            labels,
            indices,
            self.radius,
            seed=run.how.seed,
            batch=run.how.batch,
            samples=run.how.samples,
            surrogates={k: m for k, m in self.surrogates.items() if m is not run.model},
            meter=Meter(told.passes),
        )
        with random_numbers(run.how.seed, ("sanity", run.name), self.images.device):
            found = check_model(sample, depth, told.check)
            told.check("attacked again")
            return [
                *found,
                *([] if run.how.alone else check_claims(sample, claimed, self._read)),
                *check_rows(seen),
            ]

    def _diagnostics(self, labels: list[int]) -> dict[str, Any]:
        """Diagnose the classifiers that have a router or refiners."""
        telling = {
            name: model
            for name, model in self.models.items()
            if hasattr(getattr(model, "head", None), "weights") or getattr(model, "refiners", None)
        }
        if not telling:
            return {}
        indices, pixels, targets = self._some(_DIAGNOSED)
        found = {}
        for name, model in telling.items():
            how = self.hows[name]
            attack = PGD(
                model, self.radius, self.radius / 4, _STEPS, batch=how.batch, seed=how.seed
            )
            adv = attack.run(pixels, targets, indices=indices).images
            names = getattr(model, "classnames", [str(c) for c in range(max(labels) + 1)])
            about = {"attack": f"pgd-{_STEPS}", "eps": self.radius, "images": len(pixels)}
            found[name] = {**about, **diagnose(model, pixels, adv, targets, names)}
        return found

    def _calibration(self, progress: bool) -> dict[str, Any]:
        """Calibrate each model; the attack has the largest radius, there is none without one."""
        if self.val is None:
            return {}
        found, eps = {}, self.radius if self._plan else 0.0
        passes = len(self.val.rows) + len(self.images.rows) * (2 if eps else 1)
        with Progress(passes * len(self.models), "calibrate", "img", show=progress) as bar:
            for name, model in self.models.items():
                how = self.hows[name]
                with random_numbers(how.seed, ("calibration", name), self.images.device):
                    found[name] = calibrate(
                        *(model, self.val, self.images),
                        batch=how.batch,
                        seed=how.seed,
                        eps=eps,
                        bar=bar,
                    )
        return found

    def _write_examples(
        self, examples: Examples, runs: Sequence[ModelRun], rows: Sequence[dict[str, Any]]
    ) -> None:
        ((indices, clean, labels),) = self.images.read(examples.places, len(examples.places))
        tensors = {
            "indices": indices.cpu(),
            "labels": labels.cpu(),
            "clean": (clean * 255).round().to(torch.uint8).cpu(),
        }
        by_name = {run.name: run for run in runs}
        for r, row in enumerate(rows):
            run = by_name[row["model"]]
            units = run.units.get((row["attack"], row["eps"]), [])
            adv = examples.of(units, clean.cpu())
            if adv is None:
                continue
            with random_numbers(run.how.seed, ("examples", str(r)), self.images.device):
                predicted = verdicts(run.model, adv.to(clean.device), labels)[1]
            tensors |= {f"prediction.{r}": predicted.cpu(), f"adv.{r}": adv}
        examples.write(tensors)


class _Told:
    """Tells the progress bar which check runs, and how many passes the checks took."""

    def __init__(self, bar: Progress, model: str) -> None:
        self._bar, self._model, self._check = bar, model, ""

    def check(self, name: str) -> None:
        """Note the check that begins."""
        self._check = name

    def passes(self, passes: int) -> None:
        """Show the number of passes."""
        self._bar.passes(f"{self._model}: checks: {self._check}", passes)


def _side_by_side(rows: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Order the rows by attack, then model; drop the labels, which the result's data holds."""
    together = [row for same in zip(*rows, strict=True) for row in same]
    return [{k: v for k, v in row.items() if k != "labels"} for row in together]
