"""Attack many images in few slots: a fooled image gives its slot to the next image.

In a fixed batch, an image that is fooled after a few steps keeps its place until the other images
have taken all their steps. Here a slot whose image is fooled or has taken all its steps is
refilled with the next image, or with the next attempt (restart or target) on an unfooled image.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .._utils.checks import check_label_range
from .._utils.dtypes import at_least_float32
from .._utils.types import Model
from .ascent import mean_gradient
from .health import GradientHealth
from .losses import margin

State = dict[str, Tensor]  # state of the images in the slots: one row per slot in every tensor


class Ascent(Protocol):
    """Interface of an iterative attack that `climb` runs.

    Attributes:
        steps: number of iterates after the start.
        attempts: number of restarts or targets per image.
    """

    steps: int
    attempts: int

    def begin(self, rows: Tensor, attempt: int) -> State:
        """Return the initial state of an attempt on the images ``rows``.

        It holds ``x`` (clean images), ``adv`` (start images) and the attack's other tensors.
        """

    def loss(self, logits: Tensor, state: State) -> Tensor:
        """Compute the loss to maximize, ``[S]``, from the logits of ``state["adv"]``."""

    def advance(self, state: State, loss: Tensor, grad: Tensor, first: list[int]) -> None:
        """Take a step: update ``state["adv"]`` and the rest of the state to the next iterate.

        ``state["counts"]``, int64 ``[S, 2]``, accumulates zero and non-finite gradients.
        ``state["step"]``, ``[S]``, is the number of steps already taken; ``first`` lists the slots
        where it is 0.
        """

    def result(self, state: State) -> Tensor:
        """Return the image of each slot to keep if no iterate fooled the model."""


@dataclass(frozen=True)
class Climbed:
    """Result of `climb`.

    Attributes:
        images: ``[N, C, H, W]``: the image that fooled the model, else the last attempt's result;
            without ``judge``, the result with the largest margin.
        fell: whether each image is fooled, bool ``[N]``.
        fell_at: index of the iterate that fooled the model, counted over all attempts, int64
            ``[N]``; 0 is the first start, -1 means not fooled.
        health: counts of zero and non-finite gradients per image, summed over the attack.
    """

    images: Tensor
    fell: Tensor
    fell_at: Tensor
    health: GradientHealth


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
        slots: images attacked at once; all by default.
        look: steps between the host's checks for free slots. It affects only the speed: every
            iterate is evaluated.
        judge: maps logits and labels to bool ``[S]``, whether each image is fooled. An image
            fooled in a gradient pass is evaluated again without gradients before leaving its slot.
            If None, each image takes all its steps and the caller evaluates the result; of several
            attempts, the result with the largest margin is returned.
        samples: gradients averaged in each step: the expectation over a model's randomness.
        targeted: whether the labels are the target classes.
    """
    slots = max(1, min(len(images), slots or len(images)))
    run = _Run(model, ascent, images, labels, slots, judge, samples, -1 if targeted else 1)
    while run.refill():
        for _ in range(min(look, run.left())):
            run.step()
        run.harvest()
    return run.climbed()


class _Run:
    def __init__(
        self,
        model: Model,
        ascent: Ascent,
        images: Tensor,
        labels: Tensor,
        slots: int,
        judge: Callable[[Tensor, Tensor], Tensor] | None,
        samples: int,
        sign: int,
    ) -> None:
        self.sign = sign  # sign of the margin of a fooled image
        self.model, self.ascent, self.judge, self.samples = model, ascent, judge, samples
        self.images, self.labels, self.slots = images, labels, slots
        self.out = images.clone()
        # on the host, per slot: image index, attempt, and number of steps taken
        self.rows: list[int] = []
        self.attempt: list[int] = []
        self.done: list[int] = []
        self.state: State = {}
        self.fell_at = [-1] * len(images)
        self.counts = torch.zeros(len(images), 2, dtype=torch.int64, device=images.device)
        self.gradients = [0] * len(images)
        self.margins: dict[int, float] = {}  # largest margin per image, used without a judge
        self.queue = deque(
            (attempt, row) for attempt in range(ascent.attempts) for row in range(len(images))
        )
        self.classes = 0

    # ---- fill the slots ----------------------------------------------------------------------

    def refill(self) -> bool:
        """Fill the free slots; return False if all slots remain empty."""
        groups: dict[int, list[int]] = {}
        for attempt, row in self._waiting(self.slots - len(self.rows)):
            groups.setdefault(attempt, []).append(row)
        for attempt, rows in groups.items():
            where = torch.tensor(rows, device=self.images.device)
            fresh = self.ascent.begin(where, attempt)
            fresh["labels"] = self.labels[where]
            fresh["counts"] = torch.zeros_like(self.counts[where])
            fresh["step"] = torch.zeros_like(where)
            if self.judge is not None:
                fresh["hit"] = torch.zeros_like(where, dtype=torch.bool)
                fresh["hit_at"], fresh["felled"] = torch.zeros_like(where), fresh["adv"].clone()
            old = self.state
            self.state = {k: torch.cat([old[k], v]) if old else v for k, v in fresh.items()}
            self.rows += rows
            self.attempt += [attempt] * len(rows)
            self.done += [0] * len(rows)
        return bool(self.rows)

    def _waiting(self, free: int) -> Iterator[tuple[int, int]]:
        while free and self.queue:
            attempt, row = self.queue.popleft()
            if self.fell_at[row] < 0:
                free -= 1
                yield attempt, row

    def left(self) -> int:
        """Return the number of steps until the first slot has taken all its steps."""
        return max(1, self.ascent.steps - max(self.done))

    # ---- one step ----------------------------------------------------------------------------

    def step(self) -> None:
        state = self.state
        logits, loss, grad = self._gradient()
        if self.judge is not None:
            self._note(self.judge(logits, state["labels"]))
        first = [slot for slot, done in enumerate(self.done) if not done]
        self.ascent.advance(state, loss, grad, first)
        state["step"] += 1
        self.done = [done + 1 for done in self.done]
        for row in self.rows:
            self.gradients[row] += self.samples

    def _note(self, hit: Tensor) -> None:
        """Keep the first iterate that fooled the model, without a device synchronization."""
        state = self.state
        fresh = hit & ~state["hit"]
        state["felled"] = torch.where(fresh[:, None, None, None], state["adv"], state["felled"])
        state["hit_at"] = torch.where(fresh, state["step"], state["hit_at"])
        state["hit"] = state["hit"] | hit

    def _gradient(self) -> tuple[Tensor, Tensor, Tensor]:
        """Compute logits, losses and pixel gradients of the slots, averaged over the samples."""
        kept: list[tuple[Tensor, Tensor]] = []

        def loss_of(adv: Tensor) -> Tensor:
            logits = self._logits(adv)
            loss = self.ascent.loss(logits, self.state)
            if loss.shape != (len(adv),):
                raise ValueError(
                    f"loss must return one value per image, [{len(adv)}], got {list(loss.shape)}"
                )
            kept.append((logits.detach(), loss.detach()))
            return loss.sum()

        grad = mean_gradient(self.samples)(loss_of, self.state["adv"])
        logits, loss = (sum(part) / self.samples for part in zip(*kept, strict=True))
        return logits, loss, grad

    def _logits(self, adv: Tensor) -> Tensor:
        logits = self.model(adv)
        if logits.ndim != 2 or len(logits) != len(adv):
            raise ValueError(f"model must return [{len(adv)}, C] logits, got {list(logits.shape)}")
        if logits.shape[1] != self.classes:
            check_label_range(int(self.labels.max()), logits.shape[1])
            self.classes = logits.shape[1]
        return at_least_float32(logits)

    # ---- free the slots ----------------------------------------------------------------------

    def harvest(self) -> None:
        """Free the slots whose image is fooled or has taken all its steps."""
        finished = [done >= self.ascent.steps for done in self.done]
        fell = [False] * len(self.rows)
        if self.judge is not None:
            self._note_last(finished)
            fell = self._confirmed()
        fallen = [slot for slot, down in enumerate(fell) if down]
        if fallen:
            self._keep(fallen, self.state["felled"])
            for slot, at in zip(fallen, self.state["hit_at"][fallen].tolist(), strict=True):
                self.fell_at[self.rows[slot]] = self.attempt[slot] * (self.ascent.steps + 1) + at
        # end the other attempts on images that are fooled
        down = [self.fell_at[row] >= 0 for row in self.rows]
        done = [slot for slot, last in enumerate(finished) if last and not down[slot]]
        results = self.ascent.result(self.state)
        if self.judge is None and self.ascent.attempts > 1:
            done = self._best(done, results)
        self._keep(done, results)
        self._leave([slot for slot, last in enumerate(finished) if last or down[slot]])

    def _keep(self, slots: list[int], adv: Tensor) -> None:
        """Store the images of the given slots as the current results."""
        if slots:
            self.out[[self.rows[slot] for slot in slots]] = adv[slots]

    @torch.no_grad()
    def _best(self, slots: list[int], adv: Tensor) -> list[int]:
        """Return the finished slots whose margin exceeds that of earlier attempts on the image."""
        if not slots:
            return []
        where = torch.tensor(slots, device=self.images.device)
        tried, labels = adv[where], self.state["labels"][where]
        found = [self.sign * margin(self._logits(tried), labels) for _ in range(self.samples)]
        mean = torch.stack(found).mean(dim=0).nan_to_num(nan=-torch.inf)
        chosen: dict[int, int] = {}
        for slot, value in zip(slots, mean.tolist(), strict=True):
            row = self.rows[slot]
            if row not in self.margins or value > self.margins[row]:
                self.margins[row], chosen[row] = value, slot
        return list(chosen.values())

    def _note_last(self, finished: list[bool]) -> None:
        """Evaluate the iterate after the last step, which no gradient pass covers."""
        slots = [slot for slot, last in enumerate(finished) if last]
        if not slots:
            return
        where = torch.tensor(slots, device=self.images.device)
        hit = torch.zeros_like(self.state["hit"])
        hit[where] = self._judged(self.state["adv"][where], self.state["labels"][where])
        self._note(hit)

    def _confirmed(self) -> list[bool]:
        """Return which slots stay fooled in a pass without gradients; its rounding may differ."""
        hit = self.state["hit"]
        slots = hit.nonzero().flatten()
        if not len(slots):
            return [False] * len(self.rows)
        sure = self._judged(self.state["felled"][slots], self.state["labels"][slots])
        hit[slots] = sure
        return hit.tolist()

    def _judged(self, adv: Tensor, labels: Tensor) -> Tensor:
        assert self.judge is not None
        with torch.no_grad():
            return self.judge(self._logits(adv), labels)

    def _leave(self, leaving: list[int]) -> None:
        if not leaving:
            return
        gone, rows = (
            torch.tensor(values, device=self.images.device)
            for values in (leaving, [self.rows[slot] for slot in leaving])
        )
        self.counts.index_add_(0, rows, self.state["counts"][gone])
        stay = sorted(set(range(len(self.rows))) - set(leaving))
        self.rows, self.attempt, self.done = (
            [values[slot] for slot in stay] for values in (self.rows, self.attempt, self.done)
        )
        where = torch.tensor(stay, dtype=torch.int64, device=self.images.device)
        self.state = {k: v[where] for k, v in self.state.items()} if stay else {}

    def climbed(self) -> Climbed:
        fell_at = torch.tensor(self.fell_at, dtype=torch.int64, device=self.images.device)
        gradients = torch.tensor(self.gradients, device=self.images.device)
        entries = gradients * self.images[0].numel() if len(self.images) else gradients
        health = GradientHealth(self.counts[:, 0], self.counts[:, 1], entries)
        return Climbed(self.out, fell_at >= 0, fell_at, health)
