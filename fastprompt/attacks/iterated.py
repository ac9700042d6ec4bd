"""Base class of the attacks that take gradient steps; it runs them with `climb`."""

from abc import abstractmethod

from .base import Attack, Batch
from .climb import Ascent, climb
from .result import AttackResult


class IteratedAttack(Attack):
    """Base class of iterative attacks. See `Attack` for the arguments.

    With ``stop``, every iterate is evaluated, and the first one that fools the model is the result.
    Otherwise each image takes all its steps; of several attempts, the one with the largest margin
    is kept.
    """

    @abstractmethod
    def ascent(self, batch: Batch) -> Ascent:
        """Return the attack on one batch."""

    def _attack(self, batch: Batch, ask: bool) -> AttackResult:
        found = climb(
            self.model,
            self.ascent(batch),
            batch.images,
            batch.labels,
            slots=self.batch,
            judge=self.judge if self.stop else None,
            samples=self.samples,
            targeted=self.targeted,
        )
        if self.stop:
            return AttackResult(found.images, found.fell, found.health, found.fell_at)
        fell = self.won(found.images, batch.labels) if ask else None
        return AttackResult(found.images, fell, found.health)
