"""Comparison of the models of several runs: which rows can be compared."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..evaluation.result import in_doubt, worst_case
from ..evaluation.scoring import wilson
from .runs import Run, Source


class Column(NamedTuple):
    """An attack, its path, and its radius in pixel units."""

    attack: str
    path: str
    eps: float

    @property
    def radius(self) -> str:
        """The radius as text."""
        return radius(self.eps)


@dataclass(frozen=True)
class Cell:
    """Row ``number`` of an evaluation."""

    source: Source
    number: int

    @property
    def row(self) -> dict[str, Any]:
        return self.source.evaluation.rows[self.number]


@dataclass
class Method:
    """A model evaluated on a set of images.

    Attributes:
        label: its name in the report.
        model: its name in the evaluation.
        run: name of its run; empty if several runs contain the same model.
        cells: its rows.
        sources: the evaluations that contain it.
    """

    label: str
    model: str
    run: str
    cells: dict[Column, Cell] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)

    @property
    def clean(self) -> dict[str, Any] | None:
        """The row on clean images."""
        return next((c.row for k, c in self.cells.items() if k.attack == "clean"), None)

    @property
    def sanity(self) -> list[dict[str, Any]]:
        """Its sanity-check verdicts; equal verdicts of several evaluations appear once."""
        every = [s for e in self.sources for s in e.evaluation.sanity if s["model"] == self.model]
        return list({(s["check"], s["verdict"], s["reason"]): s for s in every}.values())

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The sanity checks that it failed, or that are decisive and could not run."""
        return [s for s in self.sanity if in_doubt(s)]

    @property
    def facts(self) -> dict[str, Any]:
        """The evaluation's description of the model."""
        return next((e.evaluation.models.get(self.model, {}) for e in self.sources), {})

    def attacked(self) -> dict[Column, Cell]:
        """Return the cells of attacks, without the clean one."""
        return {k: c for k, c in self.cells.items() if k.attack != "clean"}

    @property
    def radii(self) -> set[float]:
        """Nonzero radii of its adaptive attacks."""
        return {k.eps for k in self.attacked() if k.path == "adaptive" and k.eps}

    def strongest(self, eps: float | None) -> Cell | None:
        """Return the strongest adaptive attack at ``eps``, or at its smallest radius if None."""
        eps = min(self.radii, default=None) if eps is None else eps
        adaptive = {k: c for k, c in self.attacked().items() if k.path == "adaptive"}
        here = [c for k, c in adaptive.items() if k.eps == eps]
        return min(here, key=lambda cell: cell.row["accuracy"], default=None)

    def together(self, eps: float) -> tuple[float, tuple[float, float], int] | None:
        """Return robust accuracy under all attacks at ``eps``, its interval, number of attacks."""
        rows = [c.row for k, c in self.attacked().items() if k.eps == eps]
        flags = [row.get("flags") or "" for row in rows]
        if not rows or not flags[0] or len(set(map(len, flags))) > 1:
            return None
        standing, n = worst_case(rows).count("1"), len(flags[0])
        return standing / n, wilson(standing, n), len(rows)


def compare(runs: Sequence[Run]) -> list[Method]:
    """Collect the models of runs as methods to compare.

    Rows of one model on the same images form one method. Evaluations that differ in the same attack
    are separate methods. A model that several runs share (the same weights on the same images, such
    as zero-shot) is one method.
    """
    sources = [source for run in runs for source in run.sources]
    found: dict[tuple[Any, ...], Method] = {}
    for source in sources:
        for model in dict.fromkeys(row["model"] for row in source.evaluation.rows):
            own = {
                Column(row["attack"], row["path"], row["eps"]): Cell(source, number)
                for number, row in enumerate(source.evaluation.rows)
                if row["model"] == model
            }
            owner = "" if len(runs) == 1 or _shared(source, model, sources) else source.run
            key: tuple[Any, ...] = (owner, model, source.images)
            while key in found and _differ(found[key].cells, own):
                key = (*key, "again")
            method = found.setdefault(key, Method("", model, owner))
            method.cells = {**method.cells, **{k: own[k] for k in own if k not in method.cells}}
            method.sources.append(source)
    methods = list(found.values())
    _name(methods)
    return methods


def _shared(source: Source, model: str, sources: Sequence[Source]) -> bool:
    """Return whether another run evaluates the same weights on the same images."""
    weights = source.evaluation.models.get(model, {}).get("weights", "unknown")
    return weights != "unknown" and any(
        other.run != source.run
        and other.images == source.images
        and other.evaluation.models.get(model) == source.evaluation.models.get(model)
        for other in sources
    )


def _differ(one: dict[Column, Cell], other: dict[Column, Cell]) -> bool:
    keys = ("correct", "n", "flags", "settings")
    return any(
        [one[k].row.get(key) for key in keys] != [other[k].row.get(key) for key in keys]
        for k in one.keys() & other.keys()
    )


def _name(methods: Sequence[Method]) -> None:
    plain = [f"{m.run}: {m.model}" if m.run else m.model for m in methods]
    for method, label in zip(methods, plain, strict=True):
        source = method.sources[0]
        several = plain.count(label) > 1
        which = f"evaluation {source.name}" if source.name else "own result"
        method.label = f"{label} ({which})" if several else label
    taken = Counter(m.label for m in methods)
    numbers: Counter[str] = Counter()
    for method in methods:
        if taken[method.label] > 1:
            numbers[method.label] += 1
            method.label += f" {numbers[method.label]}"


def common_radius(methods: Sequence[Method]) -> float | None:
    """Return the smallest radius common to all attacked methods, None if there is none.

    At larger radii the robust accuracy of every method may be close to zero.
    """
    attacked = [m.radii for m in methods if m.radii]
    return min(set.intersection(*attacked), default=None) if attacked else None


def columns_of(methods: Sequence[Method]) -> list[Column]:
    """Return all columns: clean first, then by radius; at one radius in the order of the rows."""
    every = dict.fromkeys(k for m in methods for k in m.cells)
    return sorted(every, key=lambda k: (k.attack != "clean", k.eps))


def radius(eps: float) -> str:
    """Format a radius, such as ``4/255``."""
    return f"{255 * eps:.4g}/255" if eps else "0"


def path_words(path: str) -> str:
    """Format an attack path."""
    return path.replace("transfer:", "transfer: ") if path != "none" else ""
