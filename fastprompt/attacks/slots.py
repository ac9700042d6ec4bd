"""Attack many images in few slots: a fooled image gives its slot to the next image.

In a fixed batch, an image that is fooled after a few steps keeps its place until the other images
have taken all their steps. Here a slot whose image is fooled or has taken all its steps is
refilled with the next image, or with the next attempt (restart or target) on an unfooled image.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .._utils.checks import check_label_range
from .._utils.dtypes import at_least_float32
from .._utils.types import Model
from .health import GradientHealth
from .losses import margin

State = dict[str, Tensor]  # state of the images in the slots: one row per slot in every tensor


class Search(Protocol):
    """Interface of an attack that `Run` runs: its starts and its results.

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

    def result(self, state: State) -> Tensor:
        """Return the image of each slot to keep if no iterate fooled the model."""


@dataclass(frozen=True)
class Climbed:
    """Result of a `Run`.

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


class Run(ABC):
    """Base class of runs: fills and frees the slots; a subclass takes the steps.

    Args:
        model: maps images to logits.
        search: the attack.
        images: ``[N, C, H, W]``, on the model's device.
        labels: int64 ``[N]``.
        slots: images attacked at once.
        judge: maps logits and labels to bool ``[S]``, whether each image is fooled. An image fooled
            in a gradient pass is evaluated again without gradients before leaving its slot. If
            None, each image takes all its steps and the caller evaluates the result; of several
            attempts, the result with the largest margin is returned.
        samples: gradients averaged in each step: the expectation over a model's randomness.
        sign: sign of the margin of a fooled image, -1 if the labels are the target classes.
        together: an image enters only when there are slots for all its attempts. Which attempt
            fools the model first then does not depend on the other images.
    """

    def __init__(
        self,
        model: Model,
        search: Search,
        images: Tensor,
        labels: Tensor,
        slots: int,
        judge: Callable[[Tensor, Tensor], Tensor] | None,
        samples: int = 1,
        sign: int = 1,
        together: bool = False,
    ) -> None:
        self.model, self.search, self.judge = model, search, judge
        self.samples, self.sign = samples, sign
        self.images, self.labels = images, labels
        # read here, where the images are checked too, since a step should not wait for the device
        self.largest = int(labels.max()) if len(labels) else 0
        self.group = search.attempts if together else 1  # slots that are filled at once
        self.slots = max(slots, self.group)
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
        attempts, rows = range(search.attempts), range(len(images))
        self.queue = deque(
            [(attempt, row) for row in rows for attempt in attempts]
            if together
            else [(attempt, row) for attempt in attempts for row in rows]
        )
        self.classes = 0

    def run(self, look: int = 1) -> Climbed:
        """Attack all images; the host looks for free slots every ``look`` steps."""
        while self.refill():
            for _ in range(min(look, self.left())):
                self.step()
            self.harvest()
        return self.climbed()

    # ---- fill the slots ----------------------------------------------------------------------

    def refill(self) -> bool:
        """Fill the free slots; return False if all slots remain empty."""
        groups: dict[int, list[int]] = {}
        for attempt, row in self._waiting(self.slots - len(self.rows)):
            groups.setdefault(attempt, []).append(row)
        for attempt, rows in groups.items():
            where = torch.tensor(rows, device=self.images.device)
            fresh = self.search.begin(where, attempt)
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
        while free >= self.group and self.queue:
            for attempt, row in [self.queue.popleft() for _ in range(self.group)]:
                if self.fell_at[row] < 0:
                    free -= 1
                    yield attempt, row

    def left(self) -> int:
        """Return the number of steps until the first slot has taken all its steps."""
        return max(1, self.search.steps - max(self.done))

    # ---- one step ----------------------------------------------------------------------------

    @abstractmethod
    def step(self) -> None:
        """Take a step in all slots: update ``state`` and ``done``, and `_note` fooled images."""

    def _note(self, hit: Tensor) -> None:
        """Keep the first iterate that fooled the model, without a device synchronization."""
        state = self.state
        fresh = hit & ~state["hit"]
        state["felled"] = torch.where(fresh[:, None, None, None], state["adv"], state["felled"])
        state["hit_at"] = torch.where(fresh, state["step"], state["hit_at"])
        state["hit"] = state["hit"] | hit

    def _logits(self, adv: Tensor) -> Tensor:
        logits = self.model(adv)
        if logits.ndim != 2 or len(logits) != len(adv):
            raise ValueError(f"model must return [{len(adv)}, C] logits, got {list(logits.shape)}")
        if logits.shape[1] != self.classes:
            check_label_range(self.largest, logits.shape[1])
            self.classes = logits.shape[1]
        return at_least_float32(logits)

    # ---- free the slots ----------------------------------------------------------------------

    def harvest(self) -> None:
        """Free the slots whose image is fooled or has taken all its steps."""
        finished = [done >= self.search.steps for done in self.done]
        fell = [False] * len(self.rows)
        if self.judge is not None:
            self._note_last(finished)
            fell = self._confirmed()
        fallen = [slot for slot, down in enumerate(fell) if down]
        if fallen:
            hit_at = dict(zip(fallen, self.state["hit_at"][fallen].tolist(), strict=True))
            first: dict[int, int] = {}  # several attempts on an image may succeed at once
            for slot in sorted(fallen, key=lambda slot: hit_at[slot]):
                first.setdefault(self.rows[slot], slot)
            self._keep(list(first.values()), self.state["felled"])
            for row, slot in first.items():
                self.fell_at[row] = self.attempt[slot] * (self.search.steps + 1) + hit_at[slot]
        # end the other attempts on images that are fooled
        down = [self.fell_at[row] >= 0 for row in self.rows]
        done = [slot for slot, last in enumerate(finished) if last and not down[slot]]
        results = self.search.result(self.state)
        if self.judge is None and self.search.attempts > 1:
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
