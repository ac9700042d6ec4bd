"""Projected gradient descent in the L-inf ball, called like `torchattacks.PGD`."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from .._utils.checks import Fraction, check_count
from .._utils.checks import parse_fraction as parse
from .._utils.types import Model
from ..kernels import pgd_step
from .base import Batch
from .iterated import IteratedAttack
from .losses import cross_entropy
from .random_start import random_start
from .slots import Ascent, State

Loss = Callable[[Tensor, Tensor], Tensor]


class PGD(IteratedAttack):
    """PGD (Madry et al., ICLR 2018): ``steps`` sign steps of ``alpha`` in the eps-ball.

    With ``random_start=False`` its images are `torchattacks.PGD`'s, bit for bit in float32: at any
    batch size with ``reduction="mean"``, at powers of two with ``"sum"``. The last iterate counts,
    or any with ``stop``; of several restarts the one with the largest margin.

    Args:
        model: pixels ``[B, 3, H, W]`` in [0, 1] to logits ``[B, C]``: a module (attacked in eval
            mode, left as it was) or any callable.
        eps: radius in pixel units, a float or such as ``"8/255"``; 0 leaves the images alone.
        alpha: step size in pixel units, likewise.
        steps: gradient steps.
        random_start: start from a uniform point of the ball instead of the image.
        targeted: take the labels as targets, and lower their loss.
        loss: per-image loss ``(logits [B, C], labels [B]) -> [B]``; cross-entropy by default.
        restarts: random starts tried; needs ``random_start``.
        reduction: ``"sum"`` over the batch, or ``"mean"`` as `torchattacks` has it.
        samples: gradients averaged in each step, for a model that is random.
        stop: an image that is fooled keeps what fooled it and takes no more steps: its place is
            given to the next. Every iterate counts then: at least as strong, and faster.
        batch: images attacked at once; None takes all that are given.
        seed: of the random starts, which depend on (seed, image index, restart) alone.

    Raises:
        ValueError, TypeError: an argument out of its range.
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
        if reduction not in ("sum", "mean"):
            raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")
        self.eps = parse(eps, "eps", zero=True)
        self.alpha = parse(alpha, "alpha")
        self.steps = check_count(steps, "steps")
        self.random_start = random_start
        self.targeted = targeted
        self.loss = loss
        self.restarts = check_count(restarts, "restarts")
        if restarts > 1 and not random_start:
            raise ValueError("restarts above 1 need random_start=True: all would be alike")
        self.reduction = reduction
        self.seed = seed

    def __repr__(self) -> str:
        return (
            f"PGD(eps={self.eps * 255:g}/255, alpha={self.alpha * 255:g}/255, steps={self.steps}, "
            f"random_start={self.random_start}, restarts={self.restarts}, stop={self.stop}, "
            f"seed={self.seed})"
        )

    def ascent(self, batch: Batch) -> Ascent:
        return _PGDAscent(self, batch)

    def start(self, x: Tensor, indices: Tensor, restart: int) -> Tensor:
        """Where a restart begins: the images, or a random point of their balls."""
        if not self.random_start:
            return x
        return random_start(
            x, self.eps, indices, seed=self.seed, restart=restart, sides="two-sided"
        )


class _PGDAscent:
    """PGD on one batch, as `climb` takes it."""

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
