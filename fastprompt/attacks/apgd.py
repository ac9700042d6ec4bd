"""APGD: projected gradient ascent with momentum and adaptive step size, untargeted and targeted.

Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks", ICML 2020, section 4 and algorithm 1.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from .._utils.checks import (
    MOST_STEPS,
    Fraction,
    check_choice,
    check_count,
    check_seed,
    parse_fraction,
)
from .._utils.types import Model
from ..kernels import apgd_step
from . import losses
from .base import Batch, wrong_classes
from .climb import Ascent
from .iterated import IteratedAttack
from .random_start import random_start
from .slots import State

APGDLoss = Literal["ce", "dlr", "margin", "targeted-dlr", "targeted-margin"]

_MOMENTUM = 0.75
_RISES = 0.75  # the step size is halved if at most this share of steps raised the loss


class APGD(IteratedAttack):
    """APGD in the L-inf ball.

    The initial step size is 2 eps. At checkpoints, whose spacing shrinks during the attack, an
    image continues from its best point with half the step size if its loss rose in too few steps
    or if its best loss has not improved since the previous checkpoint.

    Args:
        model: as for `PGD`.
        eps: radius in pixel units, a float or a string such as ``"4/255"``.
        steps: gradient steps of each attempt.
        loss: ``"ce"`` (cross-entropy), ``"dlr"`` or ``"margin"``; ``"targeted-dlr"`` and
            ``"targeted-margin"`` attack several wrong classes in turn, the most likely first.
        restarts: number of random starts; a targeted loss always uses one start per target.
        targets: number of wrong classes that a targeted loss attacks.
        samples: gradients averaged in each step, for randomized models.
        stop: if True, a fooled image takes no more steps and the next image takes its slot. If
            False, each image takes all its steps and the result is its point of highest loss; of
            several attempts, the one with the largest margin.
        batch: images attacked at once; None attacks all images given to `run` at once.
        seed: seed of the random starts, which depend only on (seed, image index, attempt).

    Raises:
        ValueError, TypeError: an argument is out of range or has the wrong type.
    """

    def __init__(
        self,
        model: Model,
        eps: Fraction = 8 / 255,
        steps: int = 100,
        *,
        loss: APGDLoss = "ce",
        restarts: int = 1,
        targets: int = 9,
        samples: int = 1,
        stop: bool = True,
        batch: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, samples=samples, stop=stop, batch=batch)
        self.eps = parse_fraction(eps, "eps", zero=True)
        self.steps = check_count(steps, "steps", most=MOST_STEPS)
        check_choice(loss, "loss", get_args(APGDLoss))
        self.loss: APGDLoss = loss
        self.restarts = check_count(restarts, "restarts", most=MOST_STEPS)
        self.targets = check_count(targets, "targets", most=MOST_STEPS)
        self.seed = check_seed(seed)

    def __repr__(self) -> str:
        tried = f"targets={self.targets}" if self.each_wrong_class else f"restarts={self.restarts}"
        return (
            f"APGD(eps={self.eps * 255:g}/255, steps={self.steps}, loss={self.loss!r}, {tried}, "
            f"seed={self.seed})"
        )

    @property
    def each_wrong_class(self) -> bool:
        """Whether the attack targets several wrong classes in turn."""
        return self.loss.startswith("targeted")

    def ascent(self, batch: Batch) -> Ascent:
        return _APGDAscent(self, batch)


def checkpoints(steps: int) -> list[int]:
    """Return a list over steps: at a checkpoint, the steps since the previous one; elsewhere 0.

    The first period is 22 % of ``steps``. Each period is shorter than the one before by 3 % of
    ``steps``, and is at least 6 % of ``steps``.
    """
    period, least, less = (max(1, int(share * steps)) for share in (0.22, 0.06, 0.03))
    out, at = [0] * (steps + 1), period
    while at <= steps:
        out[at] = period
        period = max(period - less, least)
        at += period
    return out


class _APGDAscent:
    """APGD on one batch, as an `Ascent` for `climb`."""

    def __init__(self, attack: APGD, batch: Batch) -> None:
        self.attack, self.batch, self.steps = attack, batch, attack.steps
        device = batch.images.device
        self.periods = torch.tensor(checkpoints(attack.steps), device=device)
        self.order: Tensor | None = None
        self.attempts = attack.restarts
        if attack.each_wrong_class:
            self.order = wrong_classes(attack.model, batch.images, batch.labels, attack.batch)
            self.attempts = min(attack.targets, self.order.shape[1])

    def begin(self, rows: Tensor, attempt: int) -> State:
        x, eps = self.batch.images[rows], self.attack.eps
        start = random_start(
            x,
            eps,
            self.batch.indices[rows],
            seed=self.attack.seed,
            restart=attempt,
            sides="two-sided",
        )
        unknown = torch.full((len(rows),), -torch.inf, dtype=x.dtype, device=x.device)
        state = {
            "x": x,
            "adv": start,
            "before": start,
            "best": start,
            "best_grad": torch.zeros_like(x),
            "best_loss": unknown,
            "last_loss": torch.full_like(unknown, torch.inf),
            "checked_loss": unknown,
            "rises": torch.zeros_like(rows),
            "halved": torch.ones_like(rows, dtype=torch.bool),
            "alpha": torch.full_like(unknown, 2 * eps),
        }
        if self.order is not None:
            state["targets"] = self.order[rows, attempt]
        return state

    def loss(self, logits: Tensor, state: State) -> Tensor:
        return per_image_loss(self.attack.loss, logits, state["labels"], state.get("targets"))

    def advance(self, state: State, loss: Tensor, grad: Tensor, first: list[int]) -> None:
        self._compare(state, loss, grad)
        adv, grad = self._check(state, grad)
        new = self._move(state, adv, grad, _MOMENTUM, state["counts"])
        if first:  # the first step has no previous step for the momentum
            # all images' steps, since a list of slots would be copied to the device
            alone = self._move(state, adv, grad, 1.0, None)
            new = torch.where((state["step"] == 0)[:, None, None, None], alone, new)
        state["before"], state["adv"] = adv, new

    def _move(
        self, state: State, adv: Tensor, grad: Tensor, momentum: float, counts: Tensor | None
    ) -> Tensor:
        return apgd_step(
            adv,
            state["before"],
            state["x"],
            grad,
            alpha=state["alpha"],
            eps=self.attack.eps,
            momentum=momentum,
            counts=counts,
        )

    @staticmethod
    def _compare(state: State, loss: Tensor, grad: Tensor) -> None:
        """Update the best point so far and count the steps that raised the loss."""
        loss = loss.to(state["best_loss"].dtype)
        better = loss > state["best_loss"]
        wide = better[:, None, None, None]
        state["best"] = torch.where(wide, state["adv"], state["best"])
        state["best_grad"] = torch.where(wide, grad, state["best_grad"])
        state["best_loss"] = torch.where(better, loss, state["best_loss"])
        state["rises"] = state["rises"] + (loss > state["last_loss"])
        state["last_loss"] = loss

    def _check(self, state: State, grad: Tensor) -> tuple[Tensor, Tensor]:
        """At a checkpoint, halve stalled images' step sizes and return to their best points."""
        period = self.periods[state["step"]]
        due = period > 0
        seldom = state["rises"] <= _RISES * period
        stuck = ~state["halved"] & (state["checked_loss"] >= state["best_loss"])
        halve = due & (seldom | stuck)
        state["halved"] = torch.where(due, halve, state["halved"])
        state["checked_loss"] = torch.where(due, state["best_loss"], state["checked_loss"])
        state["rises"] = torch.where(due, 0, state["rises"])
        state["alpha"] = torch.where(halve, state["alpha"] / 2, state["alpha"])
        wide = halve[:, None, None, None]
        return (
            torch.where(wide, state["best"], state["adv"]),
            torch.where(wide, state["best_grad"], grad),
        )

    def result(self, state: State) -> Tensor:
        return state["best"]


def per_image_loss(
    loss: APGDLoss, logits: Tensor, labels: Tensor, targets: Tensor | None
) -> Tensor:
    """Compute the named loss, ``[B]``; the margin replaces DLR if there are too few classes."""
    classes = logits.shape[1]
    if targets is not None:
        if loss == "targeted-dlr" and classes >= 4:
            return losses.targeted_dlr(logits, labels, targets)
        return losses.targeted_margin(logits, labels, targets)
    if loss == "ce":
        return losses.cross_entropy(logits, labels)
    if loss == "dlr" and classes >= 3:
        return losses.dlr(logits, labels)
    return losses.margin(logits, labels)
