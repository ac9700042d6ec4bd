"""Projected gradient descent in the L-inf ball, called like `torchattacks.PGD`."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from .._utils.checks import MOST_STEPS, Fraction, check_choice, check_count, check_flag, check_seed
from .._utils.checks import parse_fraction as parse
from .._utils.types import Model
from ..kernels import pgd_step
from .base import Batch
from .climb import Ascent
from .iterated import IteratedAttack
from .losses import cross_entropy
from .random_start import random_start
from .slots import State

Loss = Callable[[Tensor, Tensor], Tensor]


class PGD(IteratedAttack):
    """PGD (Madry et al., ICLR 2018): ``steps`` sign steps of size ``alpha`` in the eps-ball.

    With ``random_start=False`` the images equal those of `torchattacks.PGD` bit for bit in float32:
    for ``reduction="mean"`` at any batch size, for ``"sum"`` only at batch sizes that are powers of
    two. The result is the last iterate (or see ``stop``); of several restarts, the most
    misclassified one (largest wrong-class margin; if targeted, largest target-class margin).

    Args:
        model: module or callable that maps images ``[B, C, H, W]`` in [0, 1] to logits
            ``[B, C]``; a module is attacked in eval mode, and its mode is restored afterwards.
        eps: radius in pixel units, a float or a string such as ``"8/255"``; 0 means no change.
        alpha: step size in pixel units, a float or a string.
        steps: gradient steps.
        random_start: start from a uniform random point of the ball instead of the clean image.
        targeted: use the labels as targets and minimize their loss.
        loss: per-image loss ``(logits [B, C], labels [B]) -> [B]``; cross-entropy by default.
        restarts: number of random starts; more than one requires ``random_start``.
        reduction: ``"sum"`` over the batch, or ``"mean"`` as in `torchattacks`.
        samples: gradients averaged in each step, for randomized models.
        stop: evaluate every iterate; a fooled image keeps the iterate that fooled the model, takes
            no more steps, and the next image takes its slot. The attack is then at least as strong
            and faster.
        batch: images attacked at once; None attacks all given images at once.
        seed: seed of the random starts, which depend only on (seed, image index, restart).

    Raises:
        ValueError, TypeError: an argument is out of range or has the wrong type.
    """

    def __init__(
        self,
        model: Model,
        eps: Fraction = 8 / 255,
        alpha: Fraction = 2 / 255,
        steps: int = 10,
        random_start: bool = True,
        *,
        targeted: bool = False,
        loss: Loss = cross_entropy,
        restarts: int = 1,
        reduction: Literal["sum", "mean"] = "sum",
        samples: int = 1,
        stop: bool = False,
        batch: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, samples=samples, stop=stop, batch=batch)
        if not callable(loss):
            raise TypeError(f"loss must be callable, got {loss!r}")
        check_choice(reduction, "reduction", ("sum", "mean"))
        self.eps = parse(eps, "eps", zero=True)
        self.alpha = parse(alpha, "alpha")
        self.steps = check_count(steps, "steps", most=MOST_STEPS)
        self.random_start = check_flag(random_start, "random_start")
        self.targeted = check_flag(targeted, "targeted")
        self.loss = loss
        self.restarts = check_count(restarts, "restarts", most=MOST_STEPS)
        if restarts > 1 and not random_start:
            raise ValueError(
                "restarts above 1 need random_start=True; otherwise all restarts are identical"
            )
        self.reduction = reduction
        self.seed = check_seed(seed)

    def __repr__(self) -> str:
        return (
            f"PGD(eps={self.eps * 255:g}/255, alpha={self.alpha * 255:g}/255, steps={self.steps}, "
            f"random_start={self.random_start}, restarts={self.restarts}, stop={self.stop}, "
            f"seed={self.seed})"
        )

    def ascent(self, batch: Batch) -> Ascent:
        return _PGDAscent(self, batch)

    def start(self, x: Tensor, indices: Tensor, restart: int) -> Tensor:
        """Return the starts of a restart: the clean images, or random points of their balls."""
        if not self.random_start:
            return x
        return random_start(
            x, self.eps, indices, seed=self.seed, restart=restart, sides="two-sided"
        )


class _PGDAscent:
    """PGD on one batch, as an `Ascent` for `climb`."""

    def __init__(self, attack: PGD, batch: Batch) -> None:
        self.attack, self.batch = attack, batch
        self.steps, self.attempts = attack.steps, attack.restarts

    def begin(self, rows: Tensor, attempt: int) -> State:
        x = self.batch.images[rows]
        return {"x": x, "adv": self.attack.start(x, self.batch.indices[rows], attempt)}

    def loss(self, logits: Tensor, state: State) -> Tensor:
        loss = self.attack.loss(logits, state["labels"])
        return loss / len(logits) if self.attack.reduction == "mean" else loss

    def advance(self, state: State, loss: Tensor, grad: Tensor, first: list[int]) -> None:
        state["adv"] = pgd_step(
            state["adv"],
            state["x"],
            grad,
            alpha=self.attack.alpha,
            eps=self.attack.eps,
            targeted=self.attack.targeted,
            counts=state["counts"],
        )

    def result(self, state: State) -> Tensor:
        return state["adv"]
