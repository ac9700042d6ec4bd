"""Evaluate one model under all attacks, in windows of images that are not yet fooled."""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._utils.progress import Progress
from .._utils.types import Model
from ..attacks import AttackResult
from .crafted import Crafted, Window
from .examples import Examples
from .outcomes import (
    costs,
    flags_of,
    histogram,
    nan_reasons,
    passes_of,
    stalled_reasons,
    windows,
)
from .plan import How, Planned, Stage
from .record import FELL, STALLED, STANDS, Record, Unit
from .sampling import Images, random_numbers
from .scoring import Counted, facts, verdicts, wilson
from .search import Searched

WINDOW = 8  # number of batches in memory at once; their images refill the slots of fooled ones


class ModelRun:
    """The evaluation of one model.

    Args:
        name: name of the model.
        searched: the model, which maps pixels to logits, and the one on which attacks search.
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
        searched: Searched,
        images: Images,
        how: How,
        record: Record,
        examples: Examples,
        surrogates: Mapping[str, Searched],
        crafted: Crafted,
        bar: Progress,
    ) -> None:
        self.name, self.images, self.how = name, images, how
        self.model, self.searched = searched.model, searched
        self.record, self.examples = record, examples
        self.surrogates, self.crafted, self.bar = surrogates, crafted, bar
        known = facts(self.model)
        if searched.twin is not None and searched.own:
            known.setdefault("precision", searched.own)
        self.computes: dict[str, Any] = {k: v for k, v in known.items() if k != "defenses"}
        self.units: dict[tuple[str, float], list[Unit]] = {}  # by attack and radius

    def clean(self) -> dict[str, Any]:
        """Return the row of the clean images, with ``labels`` and ``predictions``."""
        every = range(len(self.images.rows))
        self.bar.note(f"{self.name}: clean")
        done = [
            self._unit(("clean",), number, window, self._look)
            for number, window in enumerate(windows(every, WINDOW * self.how.batch))
        ]
        predictions = [p for outcome in done for p in outcome["predictions"]]
        labels = [y for outcome in done for y in outcome["labels"]]
        flags = "".join(
            STANDS if p == y else FELL for p, y in zip(predictions, labels, strict=True)
        )
        reasons = nan_reasons(predictions)
        return {
            **self._row("clean", "none", 0.0, flags, done),
            "trusted": not reasons,
            "reasons": reasons,
            "settings": {},
            "labels": labels,
            "predictions": predictions,
        }

    def attacked(self, attack: Planned, clean: Mapping[str, Any]) -> dict[str, Any]:
        """Return the row of one attack at one radius, run on images that are correct when clean.

        If the attack is scored alone, all images are attacked, and those without a usable gradient
        count by their prediction, as in published code.
        """
        flags = [STANDS] * len(clean["flags"]) if attack.alone else list(clean["flags"])
        attacked = sum(flag != FELL for flag in flags)
        done, stages, again = [], [], []
        for stage in attack.stages:
            standing = [place for place, flag in enumerate(flags) if flag != FELL]
            outcomes = self._stage(attack, stage, standing)
            found = flags_of(outcomes)
            if doubtful := self._doubtful(attack, stage, outcomes):
                confirmed = self._stage(attack, stage, doubtful, confirm=True)
                again += confirmed
                outcomes += confirmed
                found |= flags_of(confirmed)
            done += outcomes
            for place, flag in found.items():
                # a stalled image does not become robust by surviving a later stage
                flags[place] = STALLED if flags[place] == STALLED and flag == STANDS else flag
            left = sum(flag != FELL for flag in flags)
            stages.append({"attack": stage.name, "standing": left, **costs(outcomes)})
        reasons = [*clean["reasons"], *stalled_reasons(flags, attacked, done)]
        row = {
            **self._row(attack.name, attack.path, attack.eps, "".join(flags), done, attack.alone),
            "trusted": not reasons,
            "reasons": reasons,
            "settings": attack.settings,
            "search_precision": self._precision(attack),
        }
        if again:
            fell = [flag == FELL for flag in flags_of(again).values()]
            row["confirmed"] = {"attacked": len(fell), "fell": sum(fell), **costs(again)}
        if len(stages) > 1:
            row["parts"] = stages
        elif any("fell_at" in outcome for outcome in done):
            row["fell_at"] = histogram(done)
        return row

    # ---- search on a twin, confirm on the model ----------------------------------------------

    def _target(self, attack: Planned) -> Searched:
        """Return the model on which an attack's images are crafted: this one, or a surrogate."""
        surrogate = attack.surrogate
        return self.searched if surrogate is None else self.surrogates[surrogate]

    def _twin(self, attack: Planned, stage: Stage) -> Model | None:
        """Return the twin on which a stage searches; None if it searches on the model itself."""
        target = self._target(attack)
        return target.twin if stage.takes_twin(target.model) else None

    def _precision(self, attack: Planned) -> str:
        twins = [self._twin(attack, stage) for stage in attack.stages]
        return self._target(attack).precision if any(t is not None for t in twins) else "own"

    def made_on(self, attack: Planned, stage: Stage) -> Hashable:
        """Return the part of the model that a search's images depend on, None for all of it."""
        twin = self._twin(attack, stage)
        return attack.made_on(stage, self.model if twin is None else twin)

    def _doubtful(
        self, attack: Planned, stage: Stage, outcomes: Sequence[Mapping[str, Any]]
    ) -> list[int]:
        """Return the places of the images to attack again after a stage that searched on a twin.

        They are all images that stand after the confirming stage. After another stage, they are the
        images that stand although the twin was fooled, or for want of a usable gradient.
        """
        target = self._target(attack)
        random = bool(getattr(self.model, "randomized", False))
        if self._twin(attack, stage) is None or not target.confirm or random:
            return []
        every, own = stage is attack.confirming, attack.surrogate is None
        return [
            place
            for outcome in outcomes
            for place, flag, fooled in zip(
                outcome["places"], outcome["flags"], outcome["fooled_twin"], strict=True
            )
            if flag == STALLED or (flag == STANDS and (every or (own and fooled)))
        ]

    # ---- units: one window of one stage, recorded when complete ------------------------------

    def _stage(
        self, attack: Planned, stage: Stage, standing: list[int], *, confirm: bool = False
    ) -> list[dict[str, Any]]:
        """Run a stage, or ``confirm`` it: run it on the model itself, not on its twin."""
        outcomes = []
        again = " again, in the model's own precision" if confirm else ""
        task = f"{self.name}: {attack.words(stage)}{again}"
        self.bar.note(f"{task}, {len(standing)} images")
        twin = None if confirm else self._twin(attack, stage)
        made_on = None if confirm else self.made_on(attack, stage)
        every = standing if made_on is None else self.crafted.places[made_on]
        for number, window in enumerate(windows(every, WINDOW * self.how.batch)):
            places = sorted({*window} & {*standing})
            if not places:
                continue
            craft = partial(self._craft, attack, stage, window, twin, task)
            if made_on is not None:
                key = made_on, stage.name, attack.eps, number
                craft = partial(self.crafted.get, made_on, key, craft)
            unit = (attack.name, f"{attack.eps!r}", stage.name + ", confirmed" * confirm)
            self.units.setdefault((attack.name, attack.eps), []).append(
                (self.name, *unit, str(number))
            )
            last = None if twin is None else stage.last
            judge = partial(self._judge, attack, window, craft, last)
            outcomes.append(self._unit(unit, number, places, judge, advance=not confirm))
        if not confirm:
            self.bar.update(len(self.images.rows) - len(standing))
        return outcomes

    def _unit(
        self,
        what: tuple[str, ...],
        number: int,
        places: Sequence[int],
        work: Callable[[Sequence[int]], dict[str, Any]],
        *,
        advance: bool = True,
    ) -> dict[str, Any]:
        unit = (self.name, *what, str(number))
        outcome = self.record.outcome(unit, places)
        if outcome is None:
            began = time.perf_counter()
            with random_numbers(self.how.seed, unit, self.images.device):
                outcome = work(places)
            outcome["seconds"] = time.perf_counter() - began
            self.record.add(unit, outcome)
        if advance:
            self.bar.update(len(places))
        return outcome

    def _look(self, places: Sequence[int]) -> dict[str, Any]:
        predictions, labels, counted = [], [], Counted(self.model)
        for _, images, targets in self.images.read(places, self.how.batch):
            predictions += verdicts(counted, images, targets, self.images.classes)[1].tolist()
            labels += targets.tolist()
        return {"predictions": predictions, "labels": labels, **passes_of(counted)}

    def _craft(
        self, attack: Planned, stage: Stage, places: Sequence[int], twin: Model | None, task: str
    ) -> Window:
        note = partial(self.bar.passes, f"{task}, {len(places)} images")
        counted = Counted(self._target(attack).model if twin is None else twin, note)
        # pass the whole window: the attack splits it into batches
        read = zip(*self.images.read(places, self.how.batch), strict=True)
        indices, images, labels = (torch.cat(column) for column in read)
        return Window(stage.run(counted, images, labels, indices), labels, passes_of(counted))

    def _judge(
        self,
        attack: Planned,
        window: Sequence[int],
        craft: Callable[[], Window],
        last: int | None,
        places: Sequence[int],
    ) -> dict[str, Any]:
        """Classify the adversarial images of ``places``, which are in the window.

        ``last`` is the index of the last iterate if they were crafted on a twin.
        """
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
        fell_at = result.fell_at
        if last is not None:  # the twin may be fooled where the model is not, and the reverse
            fooled = torch.zeros_like(standing) if result.success is None else result.success
            outcome["fooled_twin"] = fooled.int().tolist()
            if fell_at is not None:
                fell_at = torch.where(standing, -1, torch.where(fooled, fell_at, last))
        if fell_at is not None:
            outcome["fell_at"] = fell_at.tolist()
        return outcome

    def _standing(self, result: AttackResult, labels: Tensor) -> Tensor:
        size = self.how.batch
        parts = zip(result.images.split(size), labels.split(size), strict=True)
        return torch.cat([verdicts(self.model, x, y)[0] for x, y in parts])

    def _row(
        self,
        attack: str,
        path: str,
        eps: float,
        flags: str,
        done: list[dict[str, Any]],
        alone: bool = False,
    ) -> dict[str, Any]:
        # stalled images do not count as robust, since their attack had no usable gradient
        n, correct = len(flags), flags.count(STANDS) + alone * flags.count(STALLED)
        entries = max(1, sum(outcome.get("entries", 0) for outcome in done))
        return {
            "model": self.name,
            **self.computes,
            "attack": attack,
            "path": path,
            "eps": eps,
            "scoring": "published" if self.how.alone else "strict",
            "accuracy": correct / n,
            "n": n,
            "correct": correct,
            "interval": list(wilson(correct, n)),
            "stalled": flags.count(STALLED),
            "flags": flags,
            "zero_gradients": sum(outcome.get("zero", 0) for outcome in done) / entries,
            "nonfinite_gradients": sum(outcome.get("nonfinite", 0) for outcome in done) / entries,
            **costs(done),
        }
