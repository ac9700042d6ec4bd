"""The parts of a planned attack, and the settings that all attacks of an evaluation share."""

from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ..attacks import AttackResult

_CLIMBING = ("pgd", "cw", "apgd")


@dataclass(frozen=True)
class How:
    """Settings that all attacks of an evaluation share.

    Attributes:
        seed: seed of the random starts and of Square's squares.
        batch: number of images attacked at once.
        stop: a fooled image leaves its batch, and counts as fooled if any iterate fools the model.
        samples: gradients averaged in each step, for randomized models.
        alone: attacks with a fixed number of steps are scored as in published code: on all images,
            by the accuracy on their last iterates alone.
    """

    seed: int = 0
    batch: int = 128
    stop: bool = True
    samples: int = 1
    alone: bool = False

    @property
    def facts(self) -> dict[str, Any]:
        """The settings that identify an evaluation; earlier versions had no ``alone``."""
        return {k: v for k, v in asdict(self).items() if k != "alone" or v}


Run = Callable[[Any, Tensor, Tensor, Tensor], AttackResult]


@dataclass(frozen=True)
class Stage:
    """One attack: its name, the settings that reproduce it, and a function that runs it.

    ``run`` takes the attacked model, images, labels and the images' indices. ``made_on`` returns
    the part of a model that the images depend on, None for all of it: models with an equal part
    get the same adversarial images. ``takes_twin`` returns whether the search may run on a model's
    twin in another precision.
    """

    name: str
    settings: dict[str, Any]
    run: Run
    made_on: Callable[[Any], Hashable] = lambda model: None
    takes_twin: Callable[[Any], bool] = lambda model: True

    @property
    def last(self) -> int:
        """Index of the last iterate, counted over all targets."""
        steps: int = self.settings.get("steps", self.settings.get("queries", 0))
        return self.settings.get("targets", 1) * (steps + 1) - 1


@dataclass(frozen=True)
class Planned:
    """One attack at one radius.

    Attributes:
        name: name as given.
        path: ``adaptive`` (uses the evaluated model's gradient), ``black-box`` (uses only its
            logits), ``transfer:image-encoder`` (ignores the prompts) or ``transfer:NAME`` (crafted
            on a surrogate).
        eps: radius in pixel units.
        stages: attacks, each run on the images that survived the previous ones.
        alone: whether all images are attacked, also those that are misclassified when clean.
    """

    name: str
    path: str
    eps: float
    stages: tuple[Stage, ...]
    alone: bool = False

    @property
    def surrogate(self) -> str | None:
        """Name of the surrogate on which the attack is crafted, or None."""
        return self.path.removeprefix("transfer:") if "@" in self.name else None

    @property
    def confirming(self) -> Stage:
        """The stage that attacks surviving images again in the model's own precision.

        It is the last one that climbs a loss within the radius, for AutoAttack ``apgd-t``: rounding
        may change each of its steps. FAB follows the decision boundary from outside the radius, and
        Square, which uses no gradient, would take as long as the other stages together.
        """
        climbing = [s for s in self.stages if s.name.startswith(_CLIMBING)]
        return (climbing or self.stages)[-1]

    def made_on(self, stage: Stage, model: Any) -> Hashable:
        """Return the part of the evaluated model that the images depend on, None for all of it."""
        return None if self.surrogate else stage.made_on(model)

    def words(self, stage: Stage) -> str:
        """Describe one stage for the progress bar."""
        name = self.name if len(self.stages) == 1 else f"{self.name} ({stage.name})"
        return f"{name} at {255 * self.eps:.4g}/255"

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that reproduce the attack."""
        if len(self.stages) == 1:
            return self.stages[0].settings
        return {"parts": [{"attack": stage.name, **stage.settings} for stage in self.stages]}
