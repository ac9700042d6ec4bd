"""Per-class results: robust accuracy of each class, and router weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .comparison import Method, radius
from .figures import diagnostics

_EACH = 10  # number of worst and of best classes shown
_FEW = 5  # images of a class; with fewer images its accuracy is mostly chance
_ROUTED = 24  # classes shown per router


@dataclass(frozen=True)
class ClassRow:
    """A class: name, number of images, number classified correctly clean and attacked."""

    name: str
    n: int
    clean: int | None
    standing: int

    @property
    def share(self) -> float:
        """Robust accuracy in per cent."""
        return 100 * self.standing / self.n


@dataclass(frozen=True)
class ClassTable:
    """The worst and the best classes of a method; ``best`` is empty if ``worst`` holds them all.

    ``few`` is `_FEW` if at least half of the classes have fewer than `_FEW` images, else 0.
    """

    title: str
    worst: list[ClassRow]
    best: list[ClassRow]
    few: int


def class_tables(methods: Sequence[Method], eps: float | None) -> list[ClassTable]:
    """Return worst and best classes under each method's strongest adaptive attack at ``eps``."""
    out = []
    for method in methods:
        cell = method.strongest(eps)
        if cell is None or not cell.row.get("flags"):
            continue
        found = cell.source.evaluation
        labels, names = found.data.get("labels") or [], found.data.get("classnames")
        if len(labels) != len(cell.row["flags"]):
            continue
        clean = next(
            (
                r.get("flags")
                for r in found.rows
                if r["attack"] == "clean" and r["model"] == method.model
            ),
            None,
        )
        rows = _by_class(labels, names, cell.row["flags"], clean)
        words = f"{cell.row['attack']} at {radius(cell.row['eps'])} ({cell.row['path']})"
        title = f"{method.label} under {words}"
        few = _FEW if 2 * sum(r.n < _FEW for r in rows) >= len(rows) else 0
        if len(rows) <= 2 * _EACH:
            out.append(ClassTable(title, rows, [], few))
        else:
            out.append(ClassTable(title, rows[:_EACH], rows[: -_EACH - 1 : -1], few))
    return out


def _by_class(
    labels: Sequence[int], names: Sequence[str] | None, flags: str, clean: str | None
) -> list[ClassRow]:
    """Return all classes that have images, the least robust first."""
    counts: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        count = counts.setdefault(label, [0, 0, 0])
        count[0] += 1
        count[1] += clean is not None and clean[i] == "1"
        count[2] += flags[i] == "1"
    rows = [
        ClassRow(
            str(names[label]) if names and label < len(names) else f"class {label}",
            n,
            right if clean is not None else None,
            standing,
        )
        for label, (n, right, standing) in counts.items()
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
    for method in methods:
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
