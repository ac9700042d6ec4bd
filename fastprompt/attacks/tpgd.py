"""TPGD: PGD on the divergence from the clean prediction, as TRADES uses it in training."""

import math

import torch
from torch import Tensor

from .._utils.checks import MOST_STEPS, Fraction, check_count, check_seed, parse_fraction
from .._utils.dtypes import at_least_float32
from .._utils.types import Model
from ..kernels import pgd_step
from .base import Batch
from .climb import Ascent
from .iterated import IteratedAttack
from .losses import kl_divergence
from .random_start import random_start
from .slots import State

_SPREAD = 0.001  # standard deviation of the start's noise


class TPGD(IteratedAttack):
    """PGD that maximizes ``KL(p(x) || p(x_adv))``, without labels.

    Zhang et al., "Theoretically principled trade-off between robustness and accuracy" (TRADES),
    ICML 2019, section 4. It starts from the image plus noise of N(0, 0.001), because the gradient
    is zero at the image; from the same start, the images equal those of `torchattacks.TPGD`. Unlike
    there, the noise depends only on (seed, image index, restart), and the start is in the ball.

    Args:
        model: as for `PGD`.
        eps: radius in pixel units, above 0, a float or a string such as ``"8/255"``.
        alpha: step size in pixel units, a float or a string.
        steps: gradient steps.
        restarts: number of starts.
        samples, stop, batch, seed: as for `PGD`.

    Raises:
        ValueError, TypeError: an argument is out of range or has the wrong type.
    """

    def __init__(
        self,
        model: Model,
        eps: Fraction = 8 / 255,
        alpha: Fraction = 2 / 255,
        steps: int = 10,
        *,
        restarts: int = 1,
        samples: int = 1,
        stop: bool = False,
        batch: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, samples=samples, stop=stop, batch=batch)
        self.eps = parse_fraction(eps, "eps")
        self.alpha = parse_fraction(alpha, "alpha")
        self.steps = check_count(steps, "steps", most=MOST_STEPS)
        self.restarts = check_count(restarts, "restarts", most=MOST_STEPS)
        self.seed = check_seed(seed)

    def __repr__(self) -> str:
        return (
            f"TPGD(eps={self.eps * 255:g}/255, alpha={self.alpha * 255:g}/255, "
            f"steps={self.steps}, restarts={self.restarts}, seed={self.seed})"
        )

    def ascent(self, batch: Batch) -> Ascent:
        return _TPGDAscent(self, batch)

    def start(self, x: Tensor, indices: Tensor, restart: int) -> Tensor:
        """Return the starts of a restart, in the ball and the box."""
        noise = _SPREAD * _normal(x, indices, self.seed, restart)
        return (x + noise.clamp(-self.eps, self.eps)).clamp(0, 1)


class _TPGDAscent:
    """TPGD on one batch, as an `Ascent` for `climb`."""

    def __init__(self, attack: TPGD, batch: Batch) -> None:
        self.attack, self.batch = attack, batch
        self.steps, self.attempts = attack.steps, attack.restarts

    @torch.no_grad()
    def begin(self, rows: Tensor, attempt: int) -> State:
        x = self.batch.images[rows]
        return {
            "x": x,
            "adv": self.attack.start(x, self.batch.indices[rows], attempt),
            "clean": at_least_float32(self.attack.model(x)),
        }

    def loss(self, logits: Tensor, state: State) -> Tensor:
        return kl_divergence(state["clean"], logits)

    def advance(self, state: State, loss: Tensor, grad: Tensor, first: list[int]) -> None:
        state["adv"] = pgd_step(
            state["adv"],
            state["x"],
            grad,
            alpha=self.attack.alpha,
            eps=self.attack.eps,
            counts=state["counts"],
        )

    def result(self, state: State) -> Tensor:
        return state["adv"]


def _normal(x: Tensor, indices: Tensor, seed: int, restart: int) -> Tensor:
    """Return noise of N(0, 1) of the shape of ``x``, from two uniform draws (Box and Muller)."""
    one, two = (
        random_start(
            torch.zeros_like(x),
            1.0,
            indices,
            seed=seed,
            restart=2 * restart + i,
            sides="one-sided",
            clamp=False,
        )
        for i in range(2)
    )
    return (-2 * (1 - one).log()).sqrt() * (2 * math.pi * two).cos()
