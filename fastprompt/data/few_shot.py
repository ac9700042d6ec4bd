"""Few-shot sampling and the base and new classes of a data set."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from .._utils.checks import check_choice, check_classnames
from .._utils.seeds import numbered_seed
from .dataset import ImageDataset, original

Classes = Literal["all", "base", "new"]


def class_range(n_classes: int, classes: Classes) -> range:
    """Return ``all`` labels, the first half (``base``, rounded up) or the second (``new``)."""
    half = (n_classes + 1) // 2
    parts = {"all": range(n_classes), "base": range(half), "new": range(half, n_classes)}
    check_choice(classes, "classes", tuple(parts))
    return parts[classes]


def sample(
    labels: Tensor,
    classes: range,
    shots: int | None,
    seed: int,
    without: Collection[int] = (),
) -> list[int]:
    """Sample the rows of ``shots`` items per class, or all of them if there are fewer.

    Each class has its own generator, so its shots do not depend on the other classes, and a
    draw of 16 shots includes the draw of 4 shots with the same seed. In the place of a row of
    ``without`` the class's next row is drawn.
    """
    rows: list[int] = []
    for label in classes:
        mine = (labels == label).nonzero()[:, 0]
        generator = torch.Generator().manual_seed(numbered_seed(seed, label))
        order = mine[torch.randperm(len(mine), generator=generator)].tolist()
        rows += [row for row in order if row not in without][:shots]
    return sorted(rows)


class Chosen:
    """The items ``rows`` of a data set, with ``first`` subtracted from their labels.

    ``source`` and ``unreadable`` are those of `ImageTensors`; ``files`` are the paths of few-shot
    images, relative to the data set's folder. A run records them.
    """

    source: Mapping[str, Any] | None = None
    unreadable: int = 0
    files: Sequence[str] | None = None

    def __init__(
        self,
        data: ImageDataset,
        rows: Sequence[int],
        first: int,
        fingerprint: str,
        classnames: Sequence[str],
    ) -> None:
        self.classnames = check_classnames(classnames)
        self.data, self.rows, self.first = data, list(rows), first
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.data[self.rows[index]]
        return image, label - self.first

    def picture(self, index: int) -> tuple[Image.Image, int]:
        """Return an item's picture before it was resized, and its label."""
        picture, label = original(self.data, self.rows[index])
        return picture, label - self.first
