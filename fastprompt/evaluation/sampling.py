"""The images and the random numbers of an evaluation."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor

from .._utils.checks import check_count
from ..data.dataset import ImageDataset, batches, evenly


@dataclass(frozen=True)
class Images:
    """The images of an evaluation: ``rows`` of a data set, read on demand."""

    data: ImageDataset
    rows: Sequence[int]
    device: torch.device
    workers: int = 0

    @property
    def classes(self) -> int | None:
        """The number of classes, or None if the data has no class names."""
        names = getattr(self.data, "classnames", None)
        return None if names is None else len(names)

    def read(self, places: Sequence[int], size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield indices, pixels and labels of ``rows`` at ``places``, ``size`` at a time."""
        rows = [self.rows[place] for place in places]
        for indices, images, labels in batches(self.data, rows, size, self.workers):
            yield indices.to(self.device), images.to(self.device), labels.to(self.device)


def in_turn(*groups: tuple[Sequence[int], int]) -> list[int]:
    """For each ``(places, upto)``, add evenly spaced places until ``upto`` are chosen in all."""
    taken: set[int] = set()
    for places, upto in groups:
        left = [place for place in places if place not in taken]
        taken |= {left[i] for i in evenly(upto - len(taken), len(left))}
    return sorted(taken)


def draw_rows(n: int, limit: int | None, seed: int) -> list[int]:
    """Return the indices of all n images, or of ``limit`` images drawn by ``seed``."""
    if limit is None or check_count(limit, "limit") >= n:
        return list(range(n))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return sorted(order[:limit].tolist())


@contextmanager
def random_numbers(seed: int, unit: tuple[str, ...], device: torch.device) -> Iterator[None]:
    """Seed one unit independently of earlier units; restore the generators' state afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed((seed << 32 | crc32("/".join(unit).encode())) % 2**63)
        yield
