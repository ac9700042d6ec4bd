"""AutoAttack's standard version: four attacks, each on the images that those before it left.

Croce and Hein, ICML 2020: APGD on cross-entropy, APGD on the targeted DLR loss (9 targets) and
targeted FAB (9 targets), each 100 steps, and Square with 5,000 queries.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .._utils.checks import Fraction, parse_fraction
from .._utils.types import Model
from .apgd import APGD
from .base import Attack, Batch
from .fab_square import FAB, Square
from .result import AttackResult, untouched

TARGETS = 9  # the likeliest wrong classes


@dataclass(frozen=True)
class StandardAttack:
    """One of AutoAttack's four.

    Attributes:
        steps: gradient steps (for each target), or Square's queries.
        make: model, radius, steps and the keywords that all attacks have (``batch``, ``seed``) to
            the attack; APGD takes its others, too.
    """

    steps: int
    make: Callable[..., Attack]


def _apgd_ce(model: Model, eps: float, steps: int, **options: Any) -> Attack:
    return APGD(model, eps, steps, loss="ce", **options)


def _apgd_t(model: Model, eps: float, steps: int, **options: Any) -> Attack:
    return APGD(model, eps, steps, loss="targeted-dlr", targets=TARGETS, **options)


def _fab_t(model: Model, eps: float, steps: int, *, batch: int | None, seed: int) -> Attack:
    return FAB(model, eps, steps, targets=TARGETS, batch=batch)  # it draws no random number


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
        seed: of all its attacks.

    Raises:
        ModuleNotFoundError: `torchattacks` is missing, from which FAB and Square come.
        ValueError, TypeError: an argument out of its range.
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
        self.seed = seed
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
