"""Many images through few slots: one that falls makes room for the next.

A batch whose images fall after a few steps would be attacked to the end for the sake of the few
that stand. Here a slot whose image has fallen, or has had all its steps, takes the next image, or
the next attempt (a restart, another target) at one that still stands.
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

State = dict[str, Tensor]  # of the images in the slots: every tensor has one row for each


class Ascent(Protocol):
    """What iterated attacks differ in.

    Attributes:
        steps: iterates after the start.
        attempts: restarts or targets for each image.
    """

    steps: int
    attempts: int

    def begin(self, rows: Tensor, attempt: int) -> State:
        """The state at the start of an attempt at the images ``rows``: ``x``, ``adv`` and more."""

    def loss(self, logits: Tensor, state: State) -> Tensor:
        """What is raised, ``[S]``, from the logits of ``state["adv"]``."""

    def advance(self, state: State, loss: Tensor, grad: Tensor, first: list[int]) -> None:
        """Take a step: ``state["adv"]`` and what goes with it become the next iterate's.

        ``state["counts"]``, int64 ``[S, 2]``, takes zero and non-finite gradients;
        ``state["step"]``, ``[S]``, says how many steps were taken before, and ``first`` for which
        slots that is none.
        """

    def result(self, state: State) -> Tensor:
        """The images that an attempt hands back if they did not fool the model."""


@dataclass(frozen=True)
class Climbed:
    """Attributes:

    images: ``[N, 3, H, W]``: what fooled the model, else the last attempt's result; without a
        judge the result of the largest margin.
    fell: bool ``[N]``.
    fell_at: the iterate at which it fell, counted over the attempts, int64 ``[N]``; -1 if it
        stands. 0 is the first start.
    health: of all gradients.
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
    """Attack N images, so many at a time.

    Args:
        model: pixels to logits.
        ascent: the attack.
        images: ``[N, 3, H, W]``, on the model's device.
        labels: int64 ``[N]``.
        slots: images attacked at once; by default all.
        look: how often the host looks which slots are free. It changes nothing but the time:
            every iterate is judged.
        judge: logits and labels to which images are fooled, bool: what counts. An image that fell
            in the pass that took its gradient is judged again without one before it leaves. None
            never stops an image: each has all its steps, the caller judges, and of several attempts
            the result with the largest margin is handed back.
        samples: gradients averaged in each step: the expectation over a model's own randomness.
        targeted: the labels are what the model is to say.
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
        self.sign = sign  # of the margin of an image that is fooled
        self.model, self.ascent, self.judge, self.samples = model, ascent, judge, samples
        self.images, self.labels, self.slots = images, labels, slots
        self.out = images.clone()
        # on the host: who stands in the slots, in which attempt, and how many steps were taken
        self.rows: list[int] = []
        self.attempt: list[int] = []
        self.done: list[int] = []
        self.state: State = {}
        self.fell_at = [-1] * len(images)
        self.counts = torch.zeros(len(images), 2, dtype=torch.int64, device=images.device)
        self.gradients = [0] * len(images)
        self.margins: dict[int, float] = {}  # of the results that are kept, where nobody judges
        self.queue = deque(
            (attempt, row) for attempt in range(ascent.attempts) for row in range(len(images))
        )
        self.classes = 0

    # ---- who is in the slots -----------------------------------------------------------------

    def refill(self) -> bool:
        """Fill the free slots; False if nobody is left."""
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
        """Steps until the first slot has had all of its own."""
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
        """Keep the iterate that fooled the model first: on the device, nobody waits for it."""
        state = self.state
        fresh = hit & ~state["hit"]
        state["felled"] = torch.where(fresh[:, None, None, None], state["adv"], state["felled"])
        state["hit_at"] = torch.where(fresh, state["step"], state["hit_at"])
        state["hit"] = state["hit"] | hit

    def _gradient(self) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, losses and the pixel gradient at the slots' iterates; means over the samples."""
        kept: list[tuple[Tensor, Tensor]] = []

        def loss_of(adv: Tensor) -> Tensor:
            logits = self._logits(adv)
            loss = self.ascent.loss(logits, self.state)
            if loss.shape != (len(adv),):
                raise ValueError(
                    f"loss must give [{len(adv)}], one an image, got {list(loss.shape)}"
                )
            kept.append((logits.detach(), loss.detach()))
            return loss.sum()

        grad = mean_gradient(self.samples)(loss_of, self.state["adv"])
        logits, loss = (sum(part) / self.samples for part in zip(*kept, strict=True))
        return logits, loss, grad

    def _logits(self, adv: Tensor) -> Tensor:
        logits = self.model(adv)
        if logits.ndim != 2 or len(logits) != len(adv):
            raise ValueError(f"model must give logits [{len(adv)}, C], got {list(logits.shape)}")
        if logits.shape[1] != self.classes:
            check_label_range(int(self.labels.max()), logits.shape[1])
            self.classes = logits.shape[1]
        return at_least_float32(logits)

    # ---- who leaves --------------------------------------------------------------------------

    def harvest(self) -> None:
        """Free the slots whose image has fallen or has had all its steps."""
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
        # other attempts at an image that has fallen end with it
        down = [self.fell_at[row] >= 0 for row in self.rows]
        done = [slot for slot, last in enumerate(finished) if last and not down[slot]]
        results = self.ascent.result(self.state)
        if self.judge is None and self.ascent.attempts > 1:
            done = self._best(done, results)
        self._keep(done, results)
        self._leave([slot for slot, last in enumerate(finished) if last or down[slot]])

    def _keep(self, slots: list[int], adv: Tensor) -> None:
        """The images of some slots are what the attack hands back, as far as is known."""
        if slots:
            self.out[[self.rows[slot] for slot in slots]] = adv[slots]

    @torch.no_grad()
    def _best(self, slots: list[int], adv: Tensor) -> list[int]:
        """Of attempts that are done those whose margin beats the earlier ones' at their images."""
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
        """The iterate after the last step has had no pass yet."""
        slots = [slot for slot, last in enumerate(finished) if last]
        if not slots:
            return
        where = torch.tensor(slots, device=self.images.device)
        hit = torch.zeros_like(self.state["hit"])
        hit[where] = self._judged(self.state["adv"][where], self.state["labels"][where])
        self._note(hit)

    def _confirmed(self) -> list[bool]:
        """Which images a pass without gradients is fooled by, too: rounding may tell them apart."""
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
