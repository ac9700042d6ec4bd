"""Per-class results: robust accuracy of each class, and router weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from .comparison import Cell, Method, radius
from .figures import diagnostics

_EACH = 10  # number of worst and of best classes shown
DRAWS, LEVEL = 999, 0.01  # of the permutation test
_ROUTED = 24  # classes shown per router


@dataclass(frozen=True)
class ClassRow:
    """A class: name, number of images, number classified correctly clean and attacked.

    Of several seeds, the numbers classified correctly are means.
    """

    name: str
    n: int
    clean: float | None
    standing: float

    @property
    def share(self) -> float:
        """Robust accuracy in per cent."""
        return 100 * self.standing / self.n


@dataclass(frozen=True)
class ClassTable:
    """The worst and the best classes of a method; ``best`` is empty if ``worst`` holds them all.

    Both are empty if the differences between the classes are within chance. ``images`` are the
    smallest and the largest number of images of a class.
    """

    title: str
    worst: list[ClassRow]
    best: list[ClassRow]
    images: tuple[int, int]


@dataclass
class _Image:
    """The label of an image, and over the seeds, whether it is classified correctly."""

    label: int
    clean: list[bool] = field(default_factory=list)
    standing: list[bool] = field(default_factory=list)


def class_tables(methods: Sequence[Method], eps: float | None) -> list[ClassTable]:
    """Return worst and best classes under each method's strongest adaptive attack at ``eps``."""
    out = []
    for method in methods:
        cell = method.strongest(eps)
        images = _images(method.model, cell.each) if cell is not None else []
        if cell is None or not images:
            continue
        rows = _by_class(images, cell.each[0].source.evaluation.data.get("classnames"))
        words = f"{cell.row['attack']} at {radius(cell.row['eps'])} ({cell.row['path']})"
        few, many = min(r.n for r in rows), max(r.n for r in rows)
        values = [fmean(image.standing) for image in images]
        shown = rows if beyond_chance(values, [image.label for image in images]) else []
        every = len(shown) <= 2 * _EACH
        worst = shown if every else shown[:_EACH]
        best = [] if every else shown[: -_EACH - 1 : -1]
        out.append(ClassTable(f"{method.label} under {words}", worst, best, (few, many)))
    return out


def beyond_chance(values: Sequence[float], labels: Sequence[int]) -> bool:
    """Return whether the classes' means differ more than means of random classes do.

    A permutation test: the statistic is the sum of squares between the classes, compared with that
    of ``DRAWS`` random assignments of the images to classes of the same sizes.
    """
    x = np.asarray(values, dtype=np.float64)
    _, classes = np.unique(labels, return_inverse=True)
    sizes = np.bincount(classes)

    def between(values: Any) -> float:
        return float((np.bincount(classes, values) ** 2 / sizes).sum())

    found = between(x) * (1 - 1e-12)  # equal up to rounding counts as equal
    random = np.random.default_rng(0)
    above = 0
    for _ in range(DRAWS):
        above += between(random.permutation(x)) >= found
        if above + 1 > LEVEL * (DRAWS + 1):
            return False
    return True


def _images(model: str, cells: Sequence[Cell]) -> list[_Image]:
    """Return the images of the seeds' cells; empty if labels or flags are not known."""
    out: dict[int, _Image] = {}
    every = {cell.source.images for cell in cells}
    for cell in cells:
        found = cell.source.evaluation
        labels, flags = found.data.get("labels") or [], cell.row.get("flags") or ""
        indices = found.data.get("indices") or (range(len(flags)) if len(every) == 1 else [])
        if not flags or len({len(labels), len(flags), len(indices)}) > 1:
            return []
        rows = (r for r in found.rows if r["attack"] == "clean" and r["model"] == model)
        clean = (next(rows, {}).get("flags") or "").ljust(len(flags))
        for index, label, before, after in zip(indices, labels, clean, flags, strict=True):
            image = out.setdefault(index, _Image(label))
            image.standing.append(after == "1")
            image.clean += [before == "1"] if before != " " else []
    return list(out.values())


def _by_class(images: Sequence[_Image], names: Sequence[str] | None) -> list[ClassRow]:
    """Return all classes that have images, the least robust first."""
    of: dict[int, list[_Image]] = {}
    for image in images:
        of.setdefault(image.label, []).append(image)
    known = all(image.clean for image in images)
    rows = [
        ClassRow(
            str(names[label]) if names and 0 <= label < len(names) else f"class {label}",
            len(own),
            sum(fmean(image.clean) for image in own) if known else None,
            sum(fmean(image.standing) for image in own),
        )
        for label, own in of.items()
    ]
    # of two equally robust classes, the one with the higher clean accuracy is worse
    return sorted(rows, key=lambda r: (r.share, -(r.clean or 0) / r.n, r.name))


@dataclass(frozen=True)
class Routing:
    """Mean router weights, clean and attacked, each ``[K]``, of the classes shown."""

    title: str
    prompts: int
    rows: list[tuple[str, list[float], list[float]]]
    classes: int
    top: float


def routings(methods: Sequence[Method]) -> list[Routing]:
    """Return router weights of methods with a router; of many classes, those that change most."""
    out = []
    for method in (m.first for m in methods):
        every = diagnostics(method)
        found = every.get("routing")
        if not found:
            continue
        # classes without images have no weights
        sides = zip(found["classes"], found["clean"], found["adversarial"], strict=True)
        rows = [(name, a, b) for name, a, b in sides if a is not None and b is not None]
        if not rows:
            continue
        known = len(rows)
        if len(rows) > _ROUTED:
            rows = sorted(rows, key=_change, reverse=True)[:_ROUTED]
        about = {**every, **found}
        title = f"{method.label}, clean and under {about['attack']} at {radius(about['eps'])}"
        top = max((w for _, a, b in rows for w in (*a, *b)), default=1.0) or 1.0
        out.append(Routing(title, len(rows[0][1]), rows, known, top))
    return out


def _change(row: tuple[Any, list[float], list[float]]) -> float:
    return sum(abs(a - b) for a, b in zip(row[1], row[2], strict=True))
