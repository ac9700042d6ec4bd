"""Run attacks that take gradient steps in the slots."""

from collections.abc import Callable
from functools import cached_property
from typing import Protocol

from torch import Tensor

from .._utils.types import Model
from .ascent import mean_gradient
from .slots import Climbed, Run, Search, State


class Ascent(Search, Protocol):
    """Interface of an attack that takes gradient steps; `climb` runs it."""

    def loss(self, logits: Tensor, state: State) -> Tensor:
        """Compute the loss to maximize, ``[S]``, from the logits of ``state["adv"]``."""

    def advance(self, state: State, loss: Tensor, grad: Tensor, first: list[int]) -> None:
        """Take a step: update ``state["adv"]`` and the rest of the state to the next iterate.

        ``state["counts"]``, int64 ``[S, 2]``, accumulates zero and non-finite gradients.
        ``state["step"]``, ``[S]``, is the number of steps already taken; ``first`` lists the slots
        where it is 0.
        """


def climb(
    model: Model,
    ascent: Ascent,
    images: Tensor,
    labels: Tensor,
    *,
    slots: int | None = None,
    look: int = 1,
    judge: Callable[[Tensor, Tensor], Tensor] | None = None,
    samples: int = 1,
    targeted: bool = False,
) -> Climbed:
    """Attack N images, ``slots`` of them at a time.

    Args:
        model: maps images to logits.
        ascent: the attack.
        images: ``[N, C, H, W]``, on the model's device.
        labels: int64 ``[N]``.
        slots: images attacked at once; all by default. If there are fewer images, several attempts
            on an image share a batch.
        look: steps between the host's checks for free slots. It affects only the speed: every
            iterate is evaluated.
        judge, samples: as for `Run`.
        targeted: whether the labels are the target classes.
    """
    slots = min(len(images) * ascent.attempts, slots or len(images))
    sign = -1 if targeted else 1
    return Climb(model, ascent, images, labels, slots, judge, samples, sign).run(look)


class Climb(Run):
    """A run whose steps are gradient steps."""

    search: Ascent

    @cached_property
    def varied(self) -> Callable[[Tensor, State], Tensor] | None:
        """The images at which an attack takes the gradients, if not its own; see `DIFGSM`."""
        return getattr(self.search, "varied", None)

    def step(self) -> None:
        state = self.state
        logits, loss, grad = self._gradient()
        if self.judge is not None:
            labels = state["labels"]
            plain = self.varied is None
            self._note(self.judge(logits, labels) if plain else self._judged(state["adv"], labels))
        first = [slot for slot, done in enumerate(self.done) if not done]
        self.search.advance(state, loss, grad, first)
        state["step"] += 1
        self.done = [done + 1 for done in self.done]
        for row in self.rows:
            self.gradients[row] += self.samples

    def _gradient(self) -> tuple[Tensor, Tensor, Tensor]:
        """Compute logits, losses and pixel gradients of the slots, averaged over the samples."""
        kept: list[tuple[Tensor, Tensor]] = []

        def loss_of(adv: Tensor) -> Tensor:
            logits = self._logits(adv if self.varied is None else self.varied(adv, self.state))
            loss = self.search.loss(logits, self.state)
            if loss.shape != (len(adv),):
                raise ValueError(
                    f"loss must return one value per image, [{len(adv)}], got {list(loss.shape)}"
                )
            kept.append((logits.detach(), loss.detach()))
            return loss.sum()

        grad = mean_gradient(self.samples)(loss_of, self.state["adv"])
        logits, loss = (sum(part) / self.samples for part in zip(*kept, strict=True))
        return logits, loss, grad
