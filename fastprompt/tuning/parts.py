"""The part of every batch that each process computes, where several processes tune together."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .._utils.checks import shown
from .._utils.distributed import own_part, processes
from ..runners import HERE, Runner, runner_of


@dataclass(frozen=True)
class Part:
    """This process's part of a batch.

    Attributes:
        size: number of its examples. It is 0 if the batch has fewer examples than there are
            processes: then this process computes one of them again, with weight 0, since it has to
            take part in the collectives of the loss.
        total: number of examples of the batch.
    """

    size: int
    total: int

    @property
    def share(self) -> float:
        """Weight of the mean over this process's examples in the mean over the batch."""
        return self.size / self.total


def own_batch(batch: int) -> int:
    """Return how many examples of a whole batch this process has; at least 1."""
    return max(1, len(own_part(torch.arange(batch))))


def own_order(order: Tensor, batch: int) -> tuple[Tensor, list[Part]]:
    """Return this process's examples of each batch of ``order``, one batch after the other.

    Those of a batch are contiguous, and only the last batch may have fewer than `own_batch`.

    Args:
        order: indices of an epoch's examples in order, int64 ``[N]``.
        batch: examples per batch of all processes together.
    """
    chunks = order.split(batch)
    rows = [own_part(chunk) for chunk in chunks]
    parts = [Part(len(own), len(chunk)) for own, chunk in zip(rows, chunks, strict=True)]
    spare = [own if len(own) else chunk[-1:] for own, chunk in zip(rows, chunks, strict=True)]
    return torch.cat(spare), parts


def check_processes(batch: int) -> None:
    """Raise ValueError if there are more processes than examples in a batch."""
    if processes() > batch:
        raise ValueError(
            f"batch must be at least the number of processes, {processes()}, got {batch}: raise "
            "batch, or start fewer processes"
        )


def checked_runner(runner: Runner | str | None, method: str, takes_one: bool) -> Runner:
    """Return the runner of `runner_of`; raise ValueError unless it is of use to the tuning."""
    if runner is not None and runner is not HERE and not takes_one:
        raise ValueError(
            f"runner must be None for {method}, got {shown(runner)}; torchrun tunes on several "
            "devices"
        )
    found = runner_of(runner)
    if found is not HERE and processes() > 1:
        raise ValueError(
            f"runner must be None with {processes()} processes, got {shown(runner)}: start without "
            "torchrun, or without a runner"
        )
    return found
