"""Evaluate one model under all attacks, in windows of images that are not yet fooled."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from .._utils.progress import Progress
from .._utils.types import Model
from ..attacks import AttackResult
from ..data.dataset import ImageDataset, batches
from .crafted import Crafted, Window
from .examples import Examples
from .plan import How, Planned, Stage
from .record import FELL, STALLED, STANDS, Record, Unit
from .scoring import Counted, facts, verdicts, wilson

WINDOW = 8  # number of batches in memory at once; their images refill the slots of fooled ones


@dataclass(frozen=True)
class Images:
    """The images of an evaluation: ``rows`` of a data set, read on demand."""

    data: ImageDataset
    rows: Sequence[int]
    device: torch.device
    workers: int = 0

    @property
    def classes(self) -> int | None:
        """The number of classes, or None if the data has no class names."""
        names = getattr(self.data, "classnames", None)
        return None if names is None else len(names)

    def read(self, places: Sequence[int], size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield indices, pixels and labels of ``rows`` at ``places``, ``size`` at a time."""
        rows = [self.rows[place] for place in places]
        for indices, images, labels in batches(self.data, rows, size, self.workers):
            yield indices.to(self.device), images.to(self.device), labels.to(self.device)


class ModelRun:
    """The evaluation of one model.

    Args:
        name: name of the model.
        model: maps pixels to logits.
        images: images on which it is evaluated.
        how: attack settings.
        record: outcomes of earlier units; new outcomes are added.
        examples: stores some adversarial images for inspection.
        surrogates: models by name, on which transfer attacks are crafted.
        crafted: adversarial images that models share.
        bar: progress bar, counting images.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        images: Images,
        how: How,
        record: Record,
        examples: Examples,
        surrogates: Mapping[str, Model],
        crafted: Crafted,
        bar: Progress,
    ) -> None:
        self.name, self.model, self.images, self.how = name, model, images, how
        self.record, self.examples = record, examples
        self.surrogates, self.crafted, self.bar = surrogates, crafted, bar
        known = facts(model)
        self.computes: dict[str, Any] = {k: v for k, v in known.items() if k != "defenses"}
        self.units: dict[tuple[str, float], list[Unit]] = {}  # by attack and radius

    def clean(self) -> dict[str, Any]:
        """Return the row of the clean images, with ``labels`` and ``predictions``."""
        every = range(len(self.images.rows))
        self.bar.note(f"{self.name}: clean")
        done = [
            self._unit(("clean",), number, window, self._look)
            for number, window in enumerate(_split(every, WINDOW * self.how.batch))
        ]
        predictions = [p for outcome in done for p in outcome["predictions"]]
        labels = [y for outcome in done for y in outcome["labels"]]
        flags = "".join(
            STANDS if p == y else FELL for p, y in zip(predictions, labels, strict=True)
        )
        reasons = _nan_reasons(predictions)
        return {
            **self._row("clean", "none", 0.0, flags, done),
            "trusted": not reasons,
            "reasons": reasons,
            "settings": {},
            "labels": labels,
            "predictions": predictions,
        }

    def attacked(self, attack: Planned, clean: Mapping[str, Any]) -> dict[str, Any]:
        """Return the row of one attack at one radius, run on images that are correct when clean."""
        flags = list(clean["flags"])
        attacked = sum(flag != FELL for flag in flags)
        done, stages = [], []
        for stage in attack.stages:
            standing = [place for place, flag in enumerate(flags) if flag != FELL]
            outcomes = self._stage(attack, stage, standing)
            done += outcomes
            for outcome in outcomes:
                for place, flag in zip(outcome["places"], outcome["flags"], strict=True):
                    # a stalled image does not become robust by surviving a later stage
                    flags[place] = STALLED if flags[place] == STALLED and flag == STANDS else flag
            left = sum(flag != FELL for flag in flags)
            stages.append({"attack": stage.name, "standing": left, **_costs(outcomes)})
        reasons = [*clean["reasons"], *_stalled_reasons(flags, attacked, done)]
        row = {
            **self._row(attack.name, attack.path, attack.eps, "".join(flags), done),
            "trusted": not reasons,
            "reasons": reasons,
            "settings": attack.settings,
        }
        if len(stages) > 1:
            row["parts"] = stages
        elif any("fell_at" in outcome for outcome in done):
            row["fell_at"] = _histogram(done)
        return row

    # ---- units: one window of one stage, recorded when complete ------------------------------

    def _stage(self, attack: Planned, stage: Stage, standing: list[int]) -> list[dict[str, Any]]:
        outcomes = []
        self.bar.note(self._task(attack, stage, len(standing)))
        made_on = attack.made_on(stage, self.model)
        every = standing if made_on is None else self.crafted.places[made_on]
        for number, window in enumerate(_split(every, WINDOW * self.how.batch)):
            places = sorted({*window} & {*standing})
            if not places:
                continue
            craft = partial(self._craft, attack, stage, window)
            if made_on is not None:
                key = made_on, stage.name, attack.eps, number
                craft = partial(self.crafted.get, made_on, key, craft)
            unit = (attack.name, f"{attack.eps!r}", stage.name)
            self.units.setdefault((attack.name, attack.eps), []).append(
                (self.name, *unit, str(number))
            )
            judge = partial(self._judge, attack, window, craft)
            outcomes.append(self._unit(unit, number, places, judge))
        self.bar.update(len(self.images.rows) - len(standing))
        return outcomes

    def _unit(
        self,
        what: tuple[str, ...],
        number: int,
        places: Sequence[int],
        work: Callable[[Sequence[int]], dict[str, Any]],
    ) -> dict[str, Any]:
        unit = (self.name, *what, str(number))
        outcome = self.record.outcome(unit, places)
        if outcome is None:
            began = time.perf_counter()
            with random_numbers(self.how.seed, unit, self.images.device):
                outcome = work(places)
            outcome["seconds"] = time.perf_counter() - began
            self.record.add(unit, outcome)
        self.bar.update(len(places))
        return outcome

    def _look(self, places: Sequence[int]) -> dict[str, Any]:
        predictions, labels, counted = [], [], Counted(self.model)
        for _, images, targets in self.images.read(places, self.how.batch):
            predictions += verdicts(counted, images, targets, self.images.classes)[1].tolist()
            labels += targets.tolist()
        return {"predictions": predictions, "labels": labels, **_passes(counted)}

    def _craft(self, attack: Planned, stage: Stage, places: Sequence[int]) -> Window:
        surrogate = attack.surrogate
        counted = Counted(
            self.model if surrogate is None else self.surrogates[surrogate],
            partial(self.bar.passes, self._task(attack, stage, len(places))),
        )
        # pass the whole window: the attack splits it into batches
        read = zip(*self.images.read(places, self.how.batch), strict=True)
        indices, images, labels = (torch.cat(column) for column in read)
        return Window(stage.run(counted, images, labels, indices), labels, _passes(counted))

    def _task(self, attack: Planned, stage: Stage, images: int) -> str:
        return f"{self.name}: {attack.words(stage)}, {images} images"

    def _judge(
        self,
        attack: Planned,
        window: Sequence[int],
        craft: Callable[[], Window],
        places: Sequence[int],
    ) -> dict[str, Any]:
        """Classify the adversarial images of ``places``, which are in the window."""
        result, labels, passes = craft()
        if len(places) < len(window):
            mine = [window.index(place) for place in places]
            rows = torch.tensor(mine, device=labels.device)
            result, labels = result.of(rows), labels[rows]
        self.examples.keep(self.units[attack.name, attack.eps][-1], places, result.images)
        standing = self._standing(result, labels)
        stalled = standing & result.health.stalled
        flags = torch.where(stalled, 2, standing.int()).tolist()
        outcome = {
            "places": list(places),
            "flags": "".join((FELL, STANDS, STALLED)[flag] for flag in flags),
            "zero": int(result.health.zero.sum()),
            "nonfinite": int(result.health.nonfinite.sum()),
            "entries": result.health.total,
            **passes,
        }
        if result.fell_at is not None:
            outcome["fell_at"] = result.fell_at.tolist()
        return outcome

    def _standing(self, result: AttackResult, labels: Tensor) -> Tensor:
        size = self.how.batch
        parts = zip(result.images.split(size), labels.split(size), strict=True)
        return torch.cat([verdicts(self.model, x, y)[0] for x, y in parts])

    def _row(
        self, attack: str, path: str, eps: float, flags: str, done: list[dict[str, Any]]
    ) -> dict[str, Any]:
        # stalled images do not count as robust, since their attack had no usable gradient
        n, correct = len(flags), flags.count(STANDS)
        entries = max(1, sum(outcome.get("entries", 0) for outcome in done))
        return {
            "model": self.name,
            **self.computes,
            "attack": attack,
            "path": path,
            "eps": eps,
            "accuracy": correct / n,
            "n": n,
            "correct": correct,
            "interval": list(wilson(correct, n)),
            "stalled": flags.count(STALLED),
            "flags": flags,
            "zero_gradients": sum(outcome.get("zero", 0) for outcome in done) / entries,
            "nonfinite_gradients": sum(outcome.get("nonfinite", 0) for outcome in done) / entries,
            **_costs(done),
        }


def _split(places: Sequence[int], size: int) -> list[list[int]]:
    return [list(places[i : i + size]) for i in range(0, len(places), size)]


@contextmanager
def random_numbers(seed: int, unit: tuple[str, ...], device: torch.device) -> Iterator[None]:
    """Seed one unit independently of earlier units; restore the generators' state afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed((seed << 32 | crc32("/".join(unit).encode())) % 2**63)
        yield


def _passes(counted: Counted) -> dict[str, int]:
    return {"forwards": counted.forwards, "gradients": counted.gradients}


def _costs(done: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {
        key: sum(outcome[key] for outcome in done) for key in ("forwards", "gradients")
    }
    return {**out, "seconds": round(sum(outcome["seconds"] for outcome in done), 3)}


def _histogram(done: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Count the fooled images by the iterate that fooled the model."""
    counts: dict[int, int] = {}
    for outcome in done:
        for at in outcome.get("fell_at", ()):
            if at >= 0:
                counts[at] = counts.get(at, 0) + 1
    return {str(at): counts[at] for at in sorted(counts)}


def _nan_reasons(predictions: Sequence[int]) -> list[str]:
    nan = sum(p < 0 for p in predictions)
    return [f"logits are NaN for {nan} of {len(predictions)} images"] if nan else []


def _stalled_reasons(
    flags: Sequence[str], attacked: int, done: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Return a reason if over 1 % of the attacked images had no usable gradient."""
    stalled = list(flags).count(STALLED)
    if stalled <= 0.01 * attacked:
        return []
    entries = max(1, sum(outcome["entries"] for outcome in done))
    zero, odd = (sum(outcome[k] for outcome in done) / entries for k in ("zero", "nonfinite"))
    return [
        f"no usable gradient for {stalled} images that seem robust: {zero:.1%} of the gradient "
        f"entries are zero, {odd:.1%} not finite"
    ]
