"""AutoAttack's standard version: four attacks, each on the images that those before it left.

Croce and Hein, ICML 2020: APGD on cross-entropy, APGD on the targeted DLR loss (9 targets) and
targeted FAB (9 targets), each 100 steps, and Square with 5,000 queries.
"""

from collections.abc import Callable

from .._utils.checks import Fraction, parse_fraction
from .._utils.types import Model
from .apgd import APGD
from .base import Attack, Batch
from .fab_square import FAB, Square
from .result import AttackResult, untouched

PARTS = ("apgd-ce", "apgd-t", "fab-t", "square")


class AutoAttack(Attack):
    """AutoAttack (standard) in the L-inf ball.

    Args:
        model, eps: as for `PGD`.
        batch: images attacked at once.
        seed: of all its parts.

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
        self.parts = {name: make(model, self.eps, batch, seed) for name, make in _MAKE.items()}

    def _attack(self, batch: Batch, judge: bool) -> AttackResult:
        result = untouched(batch.images.clone(), self.won(batch.images, batch.labels))
        assert result.success is not None
        for attack in self.parts.values():
            left = (~result.success).nonzero().flatten()
            if not len(left):
                break
            part = attack.run(batch.images[left], batch.labels[left], indices=batch.indices[left])
            result = result.followed_by(part, left)
        return result


_MAKE: dict[str, Callable[[Model, float, int | None, int], Attack]] = {
    "apgd-ce": lambda m, eps, batch, seed: APGD(m, eps, 100, loss="ce", batch=batch, seed=seed),
    "apgd-t": lambda m, eps, batch, seed: APGD(
        m, eps, 100, loss="targeted-dlr", targets=9, batch=batch, seed=seed
    ),
    "fab-t": lambda m, eps, batch, seed: FAB(m, eps, 100, targets=9, batch=batch, seed=seed),
    "square": lambda m, eps, batch, seed: Square(m, eps, 5000, batch=batch, seed=seed),
}
