"""The units of an evaluation: windows of images under one part of an attack."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.hashing import digest, digest_json
from .._utils.types import Model
from ..attacks import AttackResult
from ..data.dataset import content_of
from .crafted import Crafted, Window
from .outcomes import passes_of
from .record import FELL, STALLED, STANDS, Unit
from .sampling import Images, random_numbers
from .scoring import Counted, facts, verdicts
from .search import Searched, search_facts
from .stages import How, Planned, Stage

Tell = Callable[[str, int], None]


@dataclass(frozen=True)
class Task:
    """One unit of work: the clean images of a window, or one part of an attack on them.

    Attributes:
        unit: its name in the record: the model, and what is computed.
        places: positions of the images to classify.
        window: positions of the images to craft; they include ``places``. Empty if none are.
        part: positions of the attack in the model's plan and of the stage in the attack.
        confirm: search on the model itself, not on its twin.
        shared: further models take the same images.
        shown: positions of images to return.
        words: the task for the progress bar.
    """

    unit: Unit
    places: Sequence[int]
    window: Sequence[int] = ()
    part: tuple[int, int] = (0, 0)
    confirm: bool = False
    shared: bool = False
    shown: Sequence[int] = ()
    words: str = ""

    @property
    def model(self) -> str:
        """The name of the model."""
        return self.unit[0]


@dataclass(frozen=True)
class Done:
    """What came of a task: its outcome for the record, and the images at ``shown``."""

    outcome: dict[str, Any]
    images: Tensor | None = None


class Units:
    """Computes tasks, each independent of the others; sent to workers with models and images.

    Args:
        targets, surrogates: models and surrogates by name, with those on which attacks search.
        images: images on which the models are evaluated.
        plans, hows: attacks and their settings by model.
        tell: told the number of passes through a model now and then; not sent along.
    """

    def __init__(
        self,
        targets: Mapping[str, Searched],
        surrogates: Mapping[str, Searched],
        images: Images,
        plans: Mapping[str, Sequence[Planned]],
        hows: Mapping[str, How],
        tell: Tell | None = None,
    ) -> None:
        self.targets, self.surrogates, self.images = targets, surrogates, images
        self.plans, self.hows, self.tell = plans, hows, tell
        self.crafted = Crafted(images.device)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "tell": None, "crafted": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.crafted = Crafted(self.images.device)  # as much as this machine has memory for

    def title(self, task: Task) -> str:
        """Return the task in words."""
        return "/".join(task.unit)

    def facts(self) -> dict[str, str]:
        """Return hashes of the models, the settings and some of the images.

        Raises:
            ValueError: an image cannot be read.
        """
        settings = [
            [[a.name, a.eps, a.settings] for plan in self.plans.values() for a in plan],
            {name: how.facts for name, how in self.hows.items()},
            search_facts(self.targets, self.surrogates),
        ]
        every = [
            target.model for each in (self.targets, self.surrogates) for target in each.values()
        ]
        return {
            "models": digest_json([describe(model) for model in every]),
            "settings": digest_json(settings),
            "images": content_of(self.images.data, self.images.rows),
        }

    def __call__(self, task: Task) -> Done:
        began, how = time.perf_counter(), self.hows[task.model]
        with random_numbers(how.seed, task.unit, self.images.device):
            done = self._attack(task) if task.window else Done(self._look(task))
        done.outcome["seconds"] = time.perf_counter() - began
        return done

    # ---- clean -------------------------------------------------------------------------------

    def _look(self, task: Task) -> dict[str, Any]:
        model, batch = self.targets[task.model].model, self.hows[task.model].batch
        predictions, labels, counted = [], [], Counted(model)
        for _, images, targets in self.images.read(task.places, batch):
            predictions += verdicts(counted, images, targets, self.images.classes)[1].tolist()
            labels += targets.tolist()
        return {"predictions": predictions, "labels": labels, **passes_of(counted)}

    # ---- attacks -----------------------------------------------------------------------------

    def target(self, attack: Planned, model: str) -> Searched:
        """Return the model on which an attack's images are crafted: the own, or a surrogate."""
        surrogate = attack.surrogate
        return self.targets[model] if surrogate is None else self.surrogates[surrogate]

    def twin(self, attack: Planned, stage: Stage, model: str) -> Model | None:
        """Return the twin on which a stage searches; None if it searches on the model itself."""
        target = self.target(attack, model)
        direct = target.direct and stage is attack.confirming
        return None if direct or not stage.takes_twin(target.model) else target.twin

    def _attack(self, task: Task) -> Done:
        """Classify the adversarial images of the task's places."""
        attack = self.plans[task.model][task.part[0]]
        stage = attack.stages[task.part[1]]
        twin = None if task.confirm else self.twin(attack, stage, task.model)
        craft = partial(self._craft, attack, stage, task, twin)
        if task.shared:
            searched = self.targets[task.model].model if twin is None else twin
            key = attack.made_on(stage, searched), stage.name, attack.eps, *task.window
            result, labels, passes = self.crafted.get(key, craft)
        else:
            result, labels, passes = craft()
        if len(task.places) < len(task.window):
            mine = [task.window.index(place) for place in task.places]
            rows = torch.tensor(mine, device=labels.device)
            result, labels = result.of(rows), labels[rows]
        last = None if twin is None else stage.last
        outcome = {
            "places": list(task.places),
            **self._judged(task, result, labels, last),
            **passes,
        }
        mine = [task.places.index(place) for place in task.shown]
        return Done(outcome, result.images[mine].cpu() if mine else None)

    def _craft(self, attack: Planned, stage: Stage, task: Task, twin: Model | None) -> Window:
        places, batch = task.window, self.hows[task.model].batch
        note = self.tell and partial(self.tell, f"{task.words}, {len(places)} images")
        model = self.target(attack, task.model).model if twin is None else twin
        counted = Counted(model, note)
        # pass the whole window: the attack splits it into batches
        read = zip(*self.images.read(places, batch), strict=True)
        indices, images, labels = (torch.cat(column) for column in read)
        return Window(stage.run(counted, images, labels, indices), labels, passes_of(counted))

    def _judged(
        self, task: Task, result: AttackResult, labels: Tensor, last: int | None
    ) -> dict[str, Any]:
        """Return the flags and counts of adversarial images.

        ``last`` is the index of the last iterate if they were crafted on a twin.
        """
        standing = self._standing(task, result, labels)
        stalled = standing & result.health.stalled
        flags = torch.where(stalled, 2, standing.int()).tolist()
        outcome: dict[str, Any] = {
            "flags": "".join((FELL, STANDS, STALLED)[flag] for flag in flags),
            "zero": int(result.health.zero.sum()),
            "nonfinite": int(result.health.nonfinite.sum()),
            "entries": result.health.total,
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

    def _standing(self, task: Task, result: AttackResult, labels: Tensor) -> Tensor:
        model, size = self.targets[task.model].model, self.hows[task.model].batch
        parts = zip(result.images.split(size), labels.split(size), strict=True)
        return torch.cat([verdicts(model, x, y)[0] for x, y in parts])


def describe(model: Model) -> dict[str, Any]:
    """Describe how a model computes, and hash its weights."""
    weights = "unknown"
    if isinstance(model, nn.Module):
        # a state dict may hold non-tensors, and may lack settings that the repr shows
        state = model.state_dict().items()
        weights = digest({k: v for k, v in state if isinstance(v, Tensor)}, repr(model))
    return {"kind": type(model).__name__, **facts(model), "weights": weights}
