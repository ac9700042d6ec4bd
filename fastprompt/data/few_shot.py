"""Which images of a split are taken: a half of the classes, a few shots of each."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .._utils.checks import check_classnames
from .._utils.names import unknown
from .._utils.seeds import numbered_seed
from .dataset import ImageDataset

Classes = Literal["all", "base", "new"]


def class_range(n_classes: int, classes: Classes) -> range:
    """The classes of a half: ``base`` is the first (the larger if odd), ``new`` the second."""
    half = (n_classes + 1) // 2
    parts = {"all": range(n_classes), "base": range(half), "new": range(half, n_classes)}
    if classes not in parts:
        raise unknown("choice of classes", str(classes), parts)
    return parts[classes]


def sample(labels: Tensor, classes: range, shots: int | None, seed: int) -> list[int]:
    """Rows of ``shots`` items of each class, drawn by ``seed``; all where there are fewer.

    Each class has its own generator: its shots don't depend on which other classes there are, and
    the first 4 of 16 shots are the 4 of 4.
    """
    rows: list[int] = []
    for label in classes:
        mine = (labels == label).nonzero()[:, 0]
        generator = torch.Generator().manual_seed(numbered_seed(seed, label))
        order = torch.randperm(len(mine), generator=generator)
        rows += mine[order[:shots]].tolist()
    return sorted(rows)


class Chosen:
    """The items ``rows`` of a data set, their labels renumbered from ``first``."""

    def __init__(
        self,
        data: ImageDataset,
        rows: Sequence[int],
        first: int,
        tag: str,
        classnames: Sequence[str],
    ) -> None:
        self.classnames = check_classnames(classnames)
        self.data, self.rows, self.first = data, list(rows), first
        self.fingerprint = f"{data.fingerprint}/{tag}" if hasattr(data, "fingerprint") else ""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.data[self.rows[index]]
        return image, label - self.first
