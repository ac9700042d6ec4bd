"""FAB: steps to the linearized decision boundary, biased toward the clean image.

Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack",
ICML 2020, for the L-inf norm, with the settings of AutoAttack's FAB-T.
"""

import torch
from torch import Tensor

from .._utils.checks import MOST_STEPS, Fraction, check_count, parse_fraction
from .._utils.types import Model
from ..kernels.pgd_step.eager import count_gradients
from . import losses
from .base import Attack, Batch, wrong_classes
from .climb import Climb
from .result import AttackResult
from .slots import State

_ALPHA = 0.1  # the largest weight of the clean image's projection
_OVERSHOOT = 1.05  # eta of the paper: how far a step goes beyond the linearized boundary
_RETREAT = 0.9  # beta of the paper: an adversarial iterate keeps this share of its perturbation
_LEAST = 1e-8  # smallest distance in the weights; avoids 0 / 0 if the gradient is zero


class FAB(Attack):
    """Targeted FAB in the L-inf ball: seeks the boundary to each of several wrong classes.

    FAB seeks the nearest adversarial image at any distance. Here only the ball counts: an image
    leaves with its first adversarial iterate in the ball, and otherwise stays clean. All targets of
    an image are attacked in one batch; one gradient per step and target is computed, that of the
    difference of two logits.

    Args:
        model: as for `PGD`.
        eps: radius in pixel units, a float or a string such as ``"4/255"``.
        steps: steps per target, each with one gradient and one pass without gradients.
        targets: number of wrong classes attacked, the most likely first.
        batch: images times targets attacked at once, at least one image; None attacks as many as
            there are images given to `run`.

    Raises:
        ValueError, TypeError: an argument is out of range or has the wrong type.
    """

    def __init__(
        self,
        model: Model,
        eps: Fraction = 8 / 255,
        steps: int = 100,
        *,
        targets: int = 9,
        batch: int | None = None,
    ) -> None:
        super().__init__(model, stop=True, batch=batch)
        self.eps = parse_fraction(eps, "eps", zero=True)
        self.steps = check_count(steps, "steps", most=MOST_STEPS)
        self.targets = check_count(targets, "targets", most=MOST_STEPS)

    def __repr__(self) -> str:
        return f"FAB(eps={self.eps * 255:g}/255, steps={self.steps}, targets={self.targets})"

    def _attack(self, batch: Batch, ask: bool) -> AttackResult:
        found = _FABRun(self, batch).run()
        return AttackResult(found.images, found.fell, found.health, found.fell_at)


class _FABAscent:
    """FAB on one batch, as an `Ascent`; `_FABRun` adds the pass after each step."""

    def __init__(self, attack: FAB, batch: Batch) -> None:
        self.batch, self.steps = batch, attack.steps
        self.order = wrong_classes(attack.model, batch.images, batch.labels, attack.batch)
        self.attempts = min(attack.targets, self.order.shape[1])

    def begin(self, rows: Tensor, attempt: int) -> State:
        x = self.batch.images[rows]
        return {"x": x, "adv": x, "targets": self.order[rows, attempt]}

    def loss(self, logits: Tensor, state: State) -> Tensor:
        return losses.targeted_margin(logits, state["labels"], state["targets"])

    def advance(self, state: State, loss: Tensor, grad: Tensor, first: list[int]) -> None:
        count_gradients(grad, state["counts"])
        state["adv"] = fab_step(state["adv"], state["x"], loss, grad)

    def result(self, state: State) -> Tensor:
        return state["x"]


class _FABRun(Climb):
    """`Climb` in which only points in the ball count, and adversarial iterates retreat."""

    def __init__(self, attack: FAB, batch: Batch) -> None:
        ascent, slots = _FABAscent(attack, batch), attack.batch or len(batch)
        slots -= slots % ascent.attempts
        super().__init__(
            attack.model, ascent, batch.images, batch.labels, slots, attack.judge, together=True
        )
        self.eps = attack.eps

    def step(self) -> None:
        super().step()
        state = self.state
        fooled = self._judged(state["adv"], state["labels"])
        self._note(fooled)
        back = state["x"] + _RETREAT * (state["adv"] - state["x"])
        state["adv"] = torch.where(fooled[:, None, None, None], back, state["adv"])

    def _note(self, hit: Tensor) -> None:
        moved = (self.state["adv"] - self.state["x"]).abs().flatten(1).amax(dim=1)
        super()._note(hit & (moved <= self.eps))

    def _note_last(self, finished: list[bool]) -> None:
        """Do nothing: `step` evaluates the iterate after each step, the last one too."""


def fab_step(adv: Tensor, x: Tensor, value: Tensor, grad: Tensor) -> Tensor:
    """Take a step of FAB.

    Both the iterate and the clean image are projected onto the linearized boundary. The step goes
    slightly beyond it, to a weighted mean of the two projections. The clean image's weight is the
    iterate's share of the sum of both distances to the boundary, at most 0.1.

    Args:
        adv: iterates ``[B, C, H, W]`` in [0, 1].
        x: clean images.
        value: difference of the logits at ``adv`` whose zeros are the boundary, ``[B]``.
        grad: gradient of the difference. Non-finite entries and values count as zero.
    """
    shape = x.shape
    adv, x, grad = (t.flatten(1) for t in (adv, x, grad))
    grad, value = (torch.where(t.isfinite(), t, 0).to(x.dtype) for t in (grad, value))
    at_clean = value + (grad * (x - adv)).sum(dim=1)  # the linearization at the clean image
    to_adv, to_clean = (project(*pair, grad) for pair in ((adv, value), (x, at_clean)))
    far, near = (d.abs().amax(dim=1, keepdim=True).clamp_min(_LEAST) for d in (to_adv, to_clean))
    alpha = (far / (far + near)).clamp_max(_ALPHA)
    moved = (adv + _OVERSHOOT * to_adv) * (1 - alpha) + (x + _OVERSHOOT * to_clean) * alpha
    return moved.clamp_(0, 1).view(shape)


def project(x: Tensor, value: Tensor, grad: Tensor) -> Tensor:
    """Return the smallest L-inf step from ``x`` in the box to ``value + grad * step = 0``.

    With the L-inf radius r, pixel i moves by at most ``min(r, room_i)``, so ``r`` solves
    ``sum_i |grad_i| min(r, room_i) = |value|``. The left side is increasing, concave and piecewise
    linear: Newton's method from the left increases r up to the solution in finitely many passes,
    a few in practice, while the authors sort the pixels. If the box does not reach the boundary,
    each pixel moves as far as it can.

    Args:
        x: points ``[B, N]`` in [0, 1].
        value: affine function at ``x``, ``[B]``.
        grad: its gradient, ``[B, N]``.
    """
    side = torch.where(value >= 0, -1.0, 1.0).to(x.dtype)[:, None] * grad.sign()
    room = torch.where(side > 0, 1 - x, x)
    slope, wanted = grad.abs(), value.abs()
    radius = torch.zeros_like(value)
    while True:
        free = torch.where(room > radius[:, None], slope, 0)
        rest = free.sum(dim=1)
        reached = ((slope - free) * room).sum(dim=1)
        wider = torch.where(rest > 0, (wanted - reached) / rest, radius)
        if not bool((wider > radius).any()):
            return side * torch.minimum(room, radius[:, None])
        radius = torch.maximum(radius, wider)
