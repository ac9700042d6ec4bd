"""A data set that is given as a list of pictures with labels, by split."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._utils.checks import some
from .encoded import EncodedImages
from .splits import Form, Split, pick

Open = Callable[[str, Sequence[int], Sequence[int], Form], EncodedImages]


@dataclass(frozen=True)
class Listed:
    """Pictures with labels, by split, in the order of the labels and then of the list.

    This is the order of an image folder, so that the same pictures give the same draws.

    Args:
        title: the data set, for messages.
        classes: the class names, in the order of the labels.
        labels: the labels of each split, int64 ``[N]``: of ``"train"``, ``"val"`` and ``"test"``,
            or of ``"train"`` alone if there are no splits.
        open: returns the pictures of a split, given its name, rows, their labels and a form.

    Raises:
        ValueError: a class has images, but no training images, or no images at all.
    """

    title: str
    classes: Sequence[str]
    labels: Mapping[str, Tensor]
    open: Open

    def __post_init__(self) -> None:
        have = {part: set(labels.tolist()) for part, labels in self.labels.items()}
        for part, mine in have.items():
            lacking = sorted(mine - have.get("train", mine))
            if lacking:
                raise ValueError(
                    f"data: {self.title} has {part} images of the classes {self._some(lacking)}, "
                    "but no train images of them; add some, or leave these classes out"
                )
        empty = sorted(set(range(len(self.classes))) - set().union(*have.values()))
        if empty:
            raise ValueError(
                f"data: {self.title} has no images of the classes {self._some(empty)}; the labels "
                "must be numbers from 0 without gaps, each with an image"
            )

    def read(self, split: str, form: Form) -> Split:
        """Return the images of ``"train"``, ``"val"`` or ``"test"``, and their labels.

        Raises:
            ValueError: as `pick`.
        """
        orders = {part: labels.argsort(stable=True) for part, labels in self.labels.items()}
        part, rows = pick(
            split,
            list(self.labels),
            lambda own: self.labels[own][orders[own]],
            self.classes,
            self.title,
        )
        own = orders[part][torch.tensor(rows, dtype=torch.int64)]
        labels = self.labels[part][own]
        return self.open(part, own.tolist(), labels.tolist(), form), labels

    def _some(self, labels: Sequence[int]) -> str:
        return some([f"{self.classes[label]} (label {label})" for label in labels])
