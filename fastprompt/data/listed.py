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


def class_names_of(
    labels: Sequence[int | None],
    names: Sequence[str | None],
    wrong: Callable[[int, str], ValueError],
    title: str,
) -> list[str]:
    """Return the class names in the order of the labels, or sorted if there are no labels.

    Args:
        labels, names: those of each picture; each either of all pictures or of none.
        wrong: returns an error, given the number of a picture and what is wrong with it.
        title: the data set, for messages.

    Raises:
        ValueError: only some pictures have a label or a name; a label has two names, or a name two
            labels; or the labels have gaps.
    """
    for own, kind in ((labels, "label"), (names, "class name")):
        other = next((i for i, one in enumerate(own) if (one is None) != (own[0] is None)), None)
        if other is not None:
            raise wrong(other, f"either all pictures or none have a {kind}")
    if labels[0] is None:
        return sorted({name or "" for name in names})
    name_of: dict[int, str] = {}
    label_of: dict[str, int] = {}
    for row, (given, own_name) in enumerate(zip(labels, names, strict=True)):
        label = given or 0
        name = str(label) if own_name is None else own_name
        if name_of.setdefault(label, name) != name:
            raise wrong(row, f"label {label} has two names, {name_of[label]!r} and {name!r}")
        if label_of.setdefault(name, label) != label:
            raise wrong(row, f"class {name!r} has two labels, {label_of[name]} and {label}")
    gaps = sorted(set(range(len(name_of))) - name_of.keys())
    if gaps:
        raise ValueError(
            f"data: {title} has the labels 0 to {max(name_of)} with gaps: no picture has label "
            f"{gaps[0]}; number the classes from 0 without gaps"
        )
    return [name_of[label] for label in range(len(name_of))]
