"""The tuning loop of all methods: epochs of optimizer steps, and selection of the best prompts."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from .._utils.distributed import add_up_, from_first, is_first, processes, tensors_from_first
from .._utils.progress import Progress
from .._utils.run_folder import RunFolder
from .._utils.seeds import numbered_seed
from ..clip.frozen import FrozenCLIP
from . import optimizers
from .callbacks import CallbackError, Callbacks
from .config import TunerConfig
from .parts import Part, own_order

log = logging.getLogger(__name__)

_SHOWN = 64  # image indices shown in a message


class Tunable(Protocol):
    """The interface of a tuner that the loop uses; see `Tuner`.

    Attributes:
        totals: sums over an epoch's examples of the values passed to `Tuner.log`.
        part: this process's part of the current batch, if several processes tune together.
    """

    method: ClassVar[str]
    score: ClassVar[str]
    clip: FrozenCLIP
    config: TunerConfig
    prompts: nn.Module
    totals: dict[str, Tensor]
    part: Part | None

    def batches(self, order: Tensor, epoch: int) -> Iterator[tuple[int, Any]]: ...

    def loss(self, batch: Any) -> Tensor: ...

    def validate(self) -> dict[str, float]: ...


class Loop:
    """Tunes the prompts of a tuner, from the start or from where a run stopped.

    Several processes each compute their part of every batch. The gradients and losses are added up
    before each optimizer step, so that all of them hold the same prompts and stop at the same time.

    Args:
        tuner: provides the prompts, batches, loss and validation.
        run: run folder to write; None writes nothing. Only the first process has one.
        key: hash of the run's settings, model and data; a saved state with another key is rejected.
        examples: number N of training examples.
        callbacks: called after each step and epoch.
        progress: show a progress bar if the output is a terminal.
    """

    def __init__(
        self,
        tuner: Tunable,
        run: RunFolder | None,
        key: str,
        examples: int,
        callbacks: Callbacks,
        progress: bool,
    ) -> None:
        self.tuner, self.run_folder, self.key = tuner, run, key
        self.examples, self.callbacks = examples, callbacks
        self.progress = progress and is_first()
        self.config, self.prompts = tuner.config, tuner.prompts
        self.used = self.config.used(examples)
        self.optimizer = optimizers.make_optimizer(self.config, self.prompts.parameters())
        self.best = optimizers.Best()

    def run(self) -> dict[str, Tensor] | None:
        """Run the remaining epochs; return the best prompts on the validation images."""
        start, epochs = self._restore(), self.config.epochs
        if epochs <= self.config.warmup_epochs and is_first():
            log.warning("all %d epochs use warmup_lr: lower warmup_epochs or raise epochs", epochs)
        batches = math.ceil(self.used / self.config.batch)
        title, done = f"tune {self.tuner.method}", start * batches
        with Progress(epochs * batches, title, "batch", initial=done, show=self.progress) as bar:
            for epoch in range(start, epochs):
                if self._patience_is_over(epoch):
                    break
                self._finish(self._epoch(epoch, bar), bar)
        return self.best.prompts

    def _patience_is_over(self, epochs: int) -> bool:
        patience = self.config.patience
        if patience is None or self.best.prompts is None:
            return False
        return epochs - self.best.epoch >= patience

    def _restore(self) -> int:
        """Restore the run folder's saved state; return the number of completed epochs."""
        run = self.run_folder
        state = None if run is None else run.read_state(self.key)
        epochs = from_first(lambda: 0 if state is None else state[1])
        if epochs:
            tensors = tensors_from_first(None if state is None else state[0])
            self.best = optimizers.unpack(tensors, self.prompts, self.optimizer)
        if run is not None and (missing := run.cut_metrics(epochs)):
            log.warning(
                "%s has no line of the epochs %s, since it was changed or damaged; tuning resumes "
                "from state.safetensors, which does not depend on it",
                run.path / "metrics.jsonl",
                missing,
            )
        return epochs

    def _finish(self, row: dict[str, Any], bar: Progress) -> None:
        shown = ("loss", "accuracy", "val_accuracy", "val_robust")
        known = ", ".join(f"{k}={row[k]:.3f}" for k in shown if k in row)
        bar.note(f"epoch {row['epoch']} of {self.config.epochs}: {known}")
        score = row.get(self.tuner.score)
        if score is not None and score > self.best.score:
            self.best = optimizers.Best(_copy(self.prompts.state_dict()), score, row["epoch"])
        if self.run_folder is not None:
            self.run_folder.append_metrics(row)
            state = optimizers.pack(self.prompts, self.optimizer, self.best)
            self.run_folder.write_state(state, row["epoch"], self.key)
        self.callbacks.on_epoch(row)

    def _order(self, epoch: int) -> Tensor:
        """Return the examples of an epoch in order; they depend only on the seed and the epoch."""
        generator = torch.Generator().manual_seed(numbered_seed(self.config.seed, epoch))
        return torch.randperm(self.examples, generator=generator)[: self.used]

    def _epoch(self, epoch: int, bar: Progress) -> dict[str, Any]:
        began = time.perf_counter()
        order, good = self._order(epoch), _copy(self.prompts.state_dict())
        rate = optimizers.learning_rate(self.config, epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.tuner.totals.clear()
        try:
            losses = self._steps(order, epoch, good, bar)
        except CallbackError:
            self.prompts.load_state_dict(good)
            raise
        self._check_prompts(epoch, good)
        tuned = round(time.perf_counter() - began, 3)
        add_up_(*(self.tuner.totals[name] for name in sorted(self.tuner.totals)))
        loss = float(losses.sum()) / self.used
        terms = {name: float(total) / self.used for name, total in self.tuner.totals.items()}
        row = {
            **{"epoch": epoch + 1, "loss": loss, "lr": rate},
            **terms,
            **self.tuner.validate(),
            "tuning_seconds": tuned,
            "seconds": round(time.perf_counter() - began, 3),
        }
        return from_first(lambda: row)  # the best epoch and the end are the same in all processes

    def _steps(self, order: Tensor, epoch: int, good: dict[str, Tensor], bar: Progress) -> Tensor:
        """Run the epoch's optimizer steps; return each batch's loss times its size, on device."""
        group = self.config.batch * self.config.accumulate
        device = self.tuner.clip.device
        count = math.ceil(len(order) / self.config.batch)
        losses = torch.zeros(count, dtype=torch.float32, device=device)
        seen, step, several = 0, epoch * math.ceil(len(order) / group), processes() > 1
        own, parts = own_order(order, self.config.batch) if several else (order, [])
        for i, (size, batch) in enumerate(self.tuner.batches(own, epoch)):
            part = _part_of(parts, i, size) if several else Part(size, size)
            self.tuner.part = part if several else None
            if seen % group == 0:
                self.optimizer.zero_grad(set_to_none=True)
                together, begin = min(group, len(order) - seen), i
            loss = self.tuner.loss(batch)
            # a step's loss is the mean over its examples, even if its batches differ in size
            (loss if part.size == together else loss * (part.size / together)).backward()
            seen += part.total
            losses[i] = loss.detach() * part.size
            last = seen % group == 0 or seen == len(order)
            if several and last:
                add_up_(*self._gradients(), losses[begin : i + 1])
            # reading the loss does not synchronize
            if device.type == "cpu" and (last or not several):
                self._check_finite(losses[: i + 1], order, epoch, good)
            if last:
                self.optimizer.step()
                step += 1
                if self.callbacks:
                    self.callbacks.on_step(step, losses[begin : i + 1].sum() / together)
            bar.update()
        self._check_finite(losses, order, epoch, good)
        return losses

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.prompts.parameters() if p.grad is not None]

    def _check_prompts(self, epoch: int, good: dict[str, Tensor]) -> None:
        """Raise if a non-finite gradient has made the prompts non-finite in this epoch."""
        bad = torch.stack([~p.isfinite().all() for p in self.prompts.parameters()]).any()
        if bool(bad):
            self.prompts.load_state_dict(good)
            raise FloatingPointError(
                f"the prompts became nan or infinite in epoch {epoch + 1} because of a non-finite "
                f"gradient: lower lr, or use precision='fp32'; the state after epoch {epoch} is "
                "kept"
            )

    def _check_finite(
        self, losses: Tensor, order: Tensor, epoch: int, good: dict[str, Tensor]
    ) -> None:
        """Raise if a loss is not finite, and restore the prompts of the start of the epoch."""
        bad = ~losses.isfinite()
        if not bool(bad.any()):
            return
        place, batch = int(bad.int().argmax()), self.config.batch
        rows = order[place * batch : (place + 1) * batch].tolist()
        self.prompts.load_state_dict(good)
        more = "" if len(rows) <= _SHOWN else f" and {len(rows) - _SHOWN} more"
        together = self.config.accumulate
        step = epoch * math.ceil(len(order) / (batch * together)) + place // together + 1
        raise FloatingPointError(
            f"the loss became {float(losses[place])} in step {step}, in epoch {epoch + 1}: lower "
            f"lr, or inspect the training images {rows[:_SHOWN]}{more}; the state after epoch "
            f"{epoch} is kept"
        )


def _part_of(parts: list[Part], number: int, size: int) -> Part:
    """Return this process's part of a batch of which the tuner has computed ``size`` examples."""
    wanted = max(1, parts[number].size) if number < len(parts) else 0
    if size != wanted:
        raise ValueError(
            f"batch must have {wanted} examples, those of this process, got {size}: let batches() "
            "split the order into batches of Tuner.own_batch examples, or start one process"
        )
    return parts[number]


def _copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}
