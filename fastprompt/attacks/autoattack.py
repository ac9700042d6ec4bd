"""Standard AutoAttack: four attacks, each on the images that no earlier attack fooled.

Croce and Hein, ICML 2020: APGD on cross-entropy, APGD on the targeted DLR loss (9 targets) and
targeted FAB (9 targets), each 100 steps, and Square with 5,000 queries.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .._utils.checks import Fraction, check_seed, parse_fraction
from .._utils.types import Model
from .apgd import APGD
from .base import Attack, Batch
from .fab import FAB
from .result import AttackResult, untouched
from .square import Square

TARGETS = 9  # number of wrong classes attacked, the most likely first


@dataclass(frozen=True)
class StandardAttack:
    """One of AutoAttack's four attacks.

    Attributes:
        steps: gradient steps (per target), or queries for Square.
        make: builds the attack from the model, radius, steps and the keyword arguments of all four
            (``batch``, ``seed``); for APGD, it also accepts APGD's other keyword arguments.
    """

    steps: int
    make: Callable[..., Attack]


def _apgd_ce(model: Model, eps: float, steps: int, **options: Any) -> Attack:
    return APGD(model, eps, steps, loss="ce", **options)


def _apgd_t(model: Model, eps: float, steps: int, **options: Any) -> Attack:
    return APGD(model, eps, steps, loss="targeted-dlr", targets=TARGETS, **options)


def _fab_t(model: Model, eps: float, steps: int, *, batch: int | None, seed: int) -> Attack:
    return FAB(model, eps, steps, targets=TARGETS, batch=batch)  # FAB draws no random numbers


STANDARD: Mapping[str, StandardAttack] = {
    "apgd-ce": StandardAttack(100, _apgd_ce),
    "apgd-t": StandardAttack(100, _apgd_t),
    "fab-t": StandardAttack(100, _fab_t),
    "square": StandardAttack(5000, Square),
}


class AutoAttack(Attack):
    """AutoAttack (standard) in the L-inf ball.

    Args:
        model, eps: as for `PGD`.
        batch: images attacked at once.
        seed: seed of the four attacks.

    Raises:
        ValueError, TypeError: an argument is out of range or has the wrong type.
    """

    def __init__(
        self,
        model: Model,
        eps: Fraction = 8 / 255,
        *,
        batch: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, stop=True, batch=batch)
        self.eps = parse_fraction(eps, "eps", zero=True)
        self.seed = check_seed(seed)
        self.attacks = {
            name: standard.make(model, self.eps, standard.steps, batch=batch, seed=seed)
            for name, standard in STANDARD.items()
        }

    def _attack(self, batch: Batch, ask: bool) -> AttackResult:
        result = untouched(batch.images.clone(), self.won(batch.images, batch.labels))
        assert result.success is not None
        for attack in self.attacks.values():
            left = (~result.success).nonzero().flatten()
            if not len(left):
                break
            found = attack.run(batch.images[left], batch.labels[left], indices=batch.indices[left])
            result = result.followed_by(found, left)
        return result
