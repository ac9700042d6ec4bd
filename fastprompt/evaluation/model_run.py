"""Evaluate one model under all attacks, in windows of images that are not yet fooled."""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from .._utils.progress import Progress
from .._utils.types import Model
from ..runners import Team
from .crafted import Shared
from .examples import Examples
from .outcomes import costs, flags_of, histogram, nan_reasons, stalled_reasons, windows
from .record import FELL, STALLED, STANDS, Record, Unit
from .scoring import facts, wilson
from .stages import Planned, Stage
from .units import Done, Task, Units

WINDOW = 8  # number of batches in memory at once; their images refill the slots of fooled ones


class ModelRun:
    """The evaluation of one model.

    Args:
        name: name of the model.
        units: the models, the images and the attacks.
        team: computes the units.
        record: outcomes of earlier units; new outcomes are added.
        examples: stores some adversarial images for inspection.
        shared: which adversarial images models share.
        bar: progress bar, counting images.
    """

    def __init__(
        self,
        name: str,
        units: Units,
        team: Team[Task, Done],
        record: Record,
        examples: Examples,
        shared: Shared,
        bar: Progress,
    ) -> None:
        self.name, self.how, self.total = name, units.hows[name], len(units.images.rows)
        self.model, searched = units.targets[name].model, units.targets[name]
        self.work, self.team = units, team
        self.record, self.examples, self.shared, self.bar = record, examples, shared, bar
        known = facts(self.model)
        if searched.twin is not None and searched.own:
            known.setdefault("precision", searched.own)
        self.computes: dict[str, Any] = {k: v for k, v in known.items() if k != "defenses"}
        self.units: dict[tuple[str, float], list[Unit]] = {}  # by attack and radius

    def clean(self) -> dict[str, Any]:
        """Return the row of the clean images, with ``labels`` and ``predictions``."""
        self.bar.note(f"{self.name}: clean")
        done = self._done(
            Task((self.name, "clean", str(number)), window)
            for number, window in enumerate(windows(range(self.total), WINDOW * self.how.batch))
        )
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
            stood = {"standing": left, "flags": "".join(flags)}
            stages.append({"attack": stage.name, **stood, **costs(outcomes)})
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

    def _twin(self, attack: Planned, stage: Stage) -> Model | None:
        """Return the twin on which a stage searches; None if it searches on the model itself."""
        return self.work.twin(attack, stage, self.name)

    def _precision(self, attack: Planned) -> str:
        twins = [self._twin(attack, stage) for stage in attack.stages]
        return (
            self.work.target(attack, self.name).precision
            if any(t is not None for t in twins)
            else "own"
        )

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
        target = self.work.target(attack, self.name)
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
        again = " again, in the model's own precision" if confirm else ""
        words = f"{self.name}: {attack.words(stage)}{again}"
        self.bar.note(f"{words}, {len(standing)} images")
        tasks = list(self._tasks(attack, stage, standing, confirm, words))
        self.units.setdefault((attack.name, attack.eps), []).extend(t.unit for t in tasks)
        outcomes = self._done(tasks, advance=not confirm)
        if not confirm:
            self.bar.update(self.total - len(standing))
        return outcomes

    def _tasks(
        self, attack: Planned, stage: Stage, standing: list[int], confirm: bool, words: str
    ) -> Iterator[Task]:
        """Yield the tasks of a stage: the windows that hold images to attack."""
        made_on = None if confirm else self.made_on(attack, stage)
        every = standing if made_on is None else self.shared.places[made_on]
        what = attack.name, f"{attack.eps!r}", stage.name + ", confirmed" * confirm
        for number, window in enumerate(windows(every, WINDOW * self.how.batch)):
            if places := sorted({*window} & {*standing}):
                yield Task(
                    (self.name, *what, str(number)),
                    places,
                    window,
                    self._part(attack, stage),
                    confirm,
                    made_on is not None and self.shared.models[made_on] > 1,
                    self.examples.among(places),
                    words,
                )

    def _part(self, attack: Planned, stage: Stage) -> tuple[int, int]:
        """Return the positions of an attack in the plan and of a stage in it."""
        plan = self.work.plans[self.name]
        number = next(i for i, each in enumerate(plan) if each is attack)
        return number, next(i for i, each in enumerate(attack.stages) if each is stage)

    def _done(self, tasks: Iterable[Task], *, advance: bool = True) -> list[dict[str, Any]]:
        """Return the outcomes of tasks; those that are not recorded are computed, and recorded."""
        tasks = list(tasks)
        found = [self.record.outcome(task.unit, task.places) for task in tasks]
        left = [task for task, outcome in zip(tasks, found, strict=True) if outcome is None]
        coming = self.team.each(left, self.bar)
        outcomes = []
        for task, outcome in zip(tasks, found, strict=True):
            if outcome is None:
                done = next(coming)
                outcome = done.outcome
                if done.images is not None:
                    self.examples.keep(task.unit, task.shown, done.images)
                self.record.add(task.unit, outcome)
            if advance:
                self.bar.update(len(task.places))
            outcomes.append(outcome)
        return outcomes

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
