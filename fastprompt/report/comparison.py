"""Comparison of the models of several runs: which rows can be compared."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from ..evaluation.result import in_doubt, worst_case
from ..evaluation.scoring import wilson
from ..evaluation.spread import summary
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

    @property
    def each(self) -> "list[Cell]":
        """The cells of the seeds: itself."""
        return [self]


@dataclass(frozen=True)
class SeedsCell:
    """A cell of several seeds.

    Attributes:
        each: the cells of the seeds.
        names: the names of the seeds.
    """

    each: list[Cell]
    names: list[str]

    @cached_property
    def row(self) -> dict[str, Any]:
        """A row as in an evaluation: mean accuracy, the range as interval, ``std``; sums of counts.

        It has no ``flags`` and ``predictions``; ``std`` is None if only one seed has the cell.
        """
        rows = [cell.row for cell in self.each]
        out: dict[str, Any] = {k: rows[0].get(k) for k in ("model", "attack", "path", "eps")}
        found = _over([row["accuracy"] for row in rows])
        out |= found | {"accuracy": found["mean"], "interval": [found["low"], found["high"]]}
        out["settings"] = rows[0].get("settings") or {}
        out["trusted"] = all(row["trusted"] for row in rows)
        out["reasons"] = by_seed([row["reasons"] for row in rows], self.names)
        out |= {key: sum(row.get(key) or 0 for row in rows) for key in ("n", "correct", "stalled")}
        if all(row.get("fell_at") for row in rows):
            fell: Counter[str] = Counter()
            for row in rows:
                fell.update(row["fell_at"])
            out["fell_at"] = dict(fell)
        parts = [row.get("parts") or [] for row in rows]
        if len({tuple(p["attack"] for p in own) for own in parts}) == 1:
            out["parts"] = [
                {"attack": same[0]["attack"], "standing": sum(p["standing"] for p in same)}
                for same in zip(*parts, strict=True)
            ]
        return out


def _over(values: Sequence[float]) -> dict[str, Any]:
    return summary(values) | ({"std": None} if len(values) == 1 else {})


def by_seed(texts: Sequence[Sequence[str]], names: Sequence[str]) -> list[str]:
    """Return the texts of all seeds, each once, with the names of its seeds unless all have it."""
    found: dict[str, list[str]] = {}
    for own, name in zip(texts, names, strict=True):
        for text in dict.fromkeys(own):
            found.setdefault(text, []).append(name)
    return [
        text if len(where) == len(names) else f"{text} ({', '.join(where)})"
        for text, where in found.items()
    ]


@dataclass
class Method:
    """A model evaluated on a set of images, or the models of several seeds.

    Attributes:
        label: its name in the report.
        model: its name in the evaluation.
        run: name of its run; empty if several runs contain the same model.
        cells: its rows.
        sources: the evaluations that contain it.
        members: of several seeds, the method of each; else empty.
        names: the names of the seeds.
    """

    label: str
    model: str
    run: str
    cells: dict[Column, Cell | SeedsCell] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)
    members: "list[Method]" = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    @property
    def first(self) -> "Method":
        """The method of the first seed, for what has no mean; itself if it has one seed."""
        return self.members[0] if self.members else self

    @property
    def clean(self) -> dict[str, Any] | None:
        """The row on clean images."""
        return next((c.row for k, c in self.cells.items() if k.attack == "clean"), None)

    @property
    def sanity(self) -> list[dict[str, Any]]:
        """Its sanity-check verdicts; equal verdicts of several evaluations appear once."""
        if self.members:
            return self._sanity_of_seeds()
        every = [s for e in self.sources for s in e.evaluation.sanity if s["model"] == self.model]
        return list({(s["check"], s["verdict"], s["reason"]): s for s in every}.values())

    def _sanity_of_seeds(self) -> list[dict[str, Any]]:
        every = [member.sanity for member in self.members]
        pairs = dict.fromkeys((s["check"], s["verdict"]) for own in every for s in own)
        checks = list(dict.fromkeys(check for check, _ in pairs))
        out = []
        for check, verdict in sorted(pairs, key=lambda pair: checks.index(pair[0])):
            same = [
                [s["reason"] for s in own if (s["check"], s["verdict"]) == (check, verdict)]
                for own in every
            ]
            facts = {"model": self.model, "check": check, "verdict": verdict}
            out += [{**facts, "reason": reason} for reason in by_seed(same, self.names)]
        return out

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The sanity checks that it failed, or that are decisive and could not run."""
        return [s for s in self.sanity if in_doubt(s)]

    @property
    def facts(self) -> dict[str, Any]:
        """The evaluation's description of the model."""
        return next((e.evaluation.models.get(self.model, {}) for e in self.sources), {})

    def attacked(self) -> dict[Column, Cell | SeedsCell]:
        """Return the cells of attacks, without the clean one."""
        return {k: c for k, c in self.cells.items() if k.attack != "clean"}

    @property
    def radii(self) -> set[float]:
        """Nonzero radii of its adaptive attacks."""
        return {k.eps for k in self.attacked() if k.path == "adaptive" and k.eps}

    def strongest(self, eps: float | None) -> Cell | SeedsCell | None:
        """Return the strongest adaptive attack at ``eps``, or at its smallest radius if None."""
        eps = min(self.radii, default=None) if eps is None else eps
        adaptive = {k: c for k, c in self.attacked().items() if k.path == "adaptive"}
        here = [c for k, c in adaptive.items() if k.eps == eps]
        return min(here, key=lambda cell: cell.row["accuracy"], default=None)

    def together(self, eps: float) -> "Together | None":
        """Return the robust accuracy under all attacks at ``eps``; None if it is not known."""
        rows = {k: c.row for k, c in self.attacked().items() if k.eps == eps}
        if self.members:
            whole = [m for m in self.members if rows.keys() <= m.cells.keys()]
            found = [one for m in whole if (one := m.together(eps)) is not None]
            if not found or len(found) < len(whole):
                return None
            over = _over([one.share for one in found])
            return Together(over["mean"], (over["low"], over["high"]), len(rows), over["std"])
        flags = [row.get("flags") or "" for row in rows.values()]
        if not rows or not flags[0] or len(set(map(len, flags))) > 1:
            return None
        standing, n = worst_case(list(rows.values())).count("1"), len(flags[0])
        return Together(standing / n, wilson(standing, n), len(rows))


class Together(NamedTuple):
    """Robust accuracy under several attacks: Wilson interval, or of several seeds range and std."""

    share: float
    interval: tuple[float, float]
    attacks: int
    std: float | None = None


def compare(runs: Sequence[Run]) -> list[Method]:
    """Collect the models of runs as methods to compare.

    Rows of one model on the same images form one method. Evaluations that differ in the same attack
    are separate methods. A model that several runs share (the same weights on the same images, such
    as zero-shot) is one method. The methods have no labels yet.
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
    return list(found.values())


def _shared(source: Source, model: str, sources: Sequence[Source]) -> bool:
    """Return whether another run evaluates the same weights on the same images."""
    weights = source.evaluation.models.get(model, {}).get("weights", "unknown")
    return weights != "unknown" and any(
        other.run != source.run
        and other.images == source.images
        and other.evaluation.models.get(model) == source.evaluation.models.get(model)
        for other in sources
    )


def _differ(one: Mapping[Column, Cell | SeedsCell], other: Mapping[Column, Cell]) -> bool:
    keys = ("correct", "n", "flags", "settings")
    return any(
        [one[k].row.get(key) for key in keys] != [other[k].row.get(key) for key in keys]
        for k in one.keys() & other.keys()
    )


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
