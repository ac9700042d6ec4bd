"""The cells of each protocol: one run of a method, and the image sets on which it is judged."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..data.few_shot import Classes

Shots = int | Literal["all"]
ZERO_SHOT = "zero-shot"
FEW_SHOTS: tuple[Shots, ...] = (1, 2, 4, 8, 16, "all")


@dataclass(frozen=True)
class Judged:
    """Images on which a cell is judged.

    Attributes:
        column: their column in the table; empty if it is that of the cell's shots.
        data, classes: name of the data set, and which of its classes.
    """

    column: str
    data: str
    classes: Classes = "all"


@dataclass(frozen=True)
class Cell:
    """One run. ``classes``, ``shots`` and ``seed`` are those of tuning, None for zero-shot.

    Attributes:
        method: a tuning method, or ``"zero-shot"``.
        data: name of the data set of tuning.
        label: short name of ``data``.
        judged: images on which it is judged.
    """

    method: str
    data: str
    label: str
    judged: tuple[Judged, ...]
    classes: Classes | None = None
    shots: Shots | None = None
    seed: int | None = None

    @property
    def tuned(self) -> bool:
        """Whether prompts are tuned."""
        return self.method != ZERO_SHOT

    @property
    def title(self) -> str:
        """The cell in words."""
        own = "" if self.shots is None else f", {words_of_shots(self.shots)}, seed {self.seed}"
        return f"{self.method} on {self.label}{own}"

    @property
    def folder(self) -> str:
        """Name of its run folder, unique in a plan."""
        parts = [self.method, slug(self.label)]
        parts += [f"{self.shots}-shots", f"seed-{self.seed}"] if self.tuned else []
        return "-".join(parts)


def words_of_shots(shots: Shots) -> str:
    """Return a number of shots in words."""
    return "all images" if shots == "all" else "1 shot" if shots == 1 else f"{shots} shots"


def slug(label: str) -> str:
    """Return a label as a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip("-.")[-80:] or "data"


def labels_of(names: Sequence[str]) -> dict[str, str]:
    """Return short names of data sets: without ``coop:`` and folders above, if they stay distinct.

    Raises:
        ValueError: the names would give equal folders.
    """
    short = {name: re.split(r"[/\\]", name.rstrip("/\\"))[-1].split(":")[-1] for name in names}
    for labels in (short, {name: name for name in names}):
        if len({slug(label).lower() for label in labels.values()}) == len(names):
            return labels
    raise ValueError(f"data must have distinct names, got {', '.join(names)}")


Judge = Callable[[str, Mapping[str, str]], tuple[Judged, ...]]


def _itself(source: str, labels: Mapping[str, str]) -> tuple[Judged, ...]:
    return (Judged("", source),)


def _halves(source: str, labels: Mapping[str, str]) -> tuple[Judged, ...]:
    return Judged("base", source, "base"), Judged("new", source, "new")


def _every(source: str, labels: Mapping[str, str]) -> tuple[Judged, ...]:
    return tuple(Judged(label, name) for name, label in labels.items())


@dataclass(frozen=True)
class Protocol:
    """A protocol.

    Attributes:
        about: what it does.
        shots: shots by default.
        judge: the images on which a cell is judged, from its data set and the labels of all sets.
        classes: classes of tuning.
        single: only the first data set is tuned on.
    """

    about: str
    shots: tuple[Shots, ...]
    judge: Judge
    classes: Classes = "all"
    single: bool = False


PROTOCOLS = {
    "few-shot": Protocol(
        "tuned on few images of each class, judged on all classes", FEW_SHOTS, _itself
    ),
    "base-to-new": Protocol(
        "tuned on the first half of the classes, judged on both halves among themselves",
        (16,),
        _halves,
        "base",
    ),
    "cross-dataset": Protocol(
        "tuned on the first set, judged on all with their class names", (16,), _every, single=True
    ),
    "domain-shift": Protocol(
        "tuned on the first set, judged on it and on sets with the same classes",
        (16,),
        _every,
        single=True,
    ),
}


def cells_of(
    protocol: Protocol,
    methods: Sequence[str],
    labels: Mapping[str, str],
    shots: Sequence[Shots],
    seeds: Sequence[int],
) -> Iterator[Cell]:
    """Yield the cells: those of zero-shot first, then by data set, shots, seed and method."""
    sources = list(labels)[:1] if protocol.single else list(labels)
    judged = {source: protocol.judge(source, labels) for source in sources}
    if ZERO_SHOT in methods:
        for source in sources:
            yield Cell(ZERO_SHOT, source, labels[source], judged[source])
    for source in sources:
        for shot in shots:
            for seed in seeds:
                for method in methods:
                    if method != ZERO_SHOT:
                        label, own = labels[source], judged[source]
                        yield Cell(method, source, label, own, protocol.classes, shot, seed)
