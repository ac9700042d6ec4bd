"""Runs and evaluations that differ only in their seeds, and the names of runs and methods."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..tuning.identity import EXECUTION
from .comparison import Cell, Column, Method, SeedsCell
from .runs import Run, Source

_TUNED = "tuned"  # the name of the tuned classifier in the evaluations of a tuner
# arguments of the training data that don't change what the images are drawn from
_PLACE = ("seed", "root", "directory", "download", "unreadable", "few_shots")
_KINDS = ("seed", "data seed", "evaluation seed")
_Seeds = tuple[
    int | None, int | None, tuple[int, ...]
]  # of tuning, of the few-shot draw, of the evaluations


@dataclass
class Group:
    """Runs of one method that differ only in their seeds; most groups have one run.

    Attributes:
        runs: the runs, by seed.
        label: its name in the report.
        names: the names of the seeds.
    """

    runs: list[Run]
    label: str = ""
    names: list[str] = field(default_factory=list)

    @property
    def base(self) -> str:
        """The method, or the folder's name if the method is not known."""
        return self.runs[0].method or self.runs[0].name

    @property
    def folder(self) -> str:
        """The names of its folders, or of the folder that holds them."""
        names = [run.name for run in self.runs]
        if len(names) == 1:
            return names[0]
        if len({run.folder.resolve().parent for run in self.runs}) > 1:
            return ", ".join(names)
        return names[0].rpartition("/")[0] or self.runs[0].folder.resolve().parent.name

    @property
    def data_known(self) -> bool:
        """Whether the runs record which images they were tuned on."""
        return bool(self.runs[0].data)


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Group runs with equal settings, model, classes and training data, and different seeds."""
    groups: dict[str, list[Group]] = {}
    for run in runs:
        same = groups.setdefault(_settings(run), [])
        group = next((g for g in same if run.seeds not in [r.seeds for r in g.runs]), None)
        if group is None:
            same.append(Group([run]))
        else:
            group.runs.append(run)
    out = [group for same in groups.values() for group in same]
    for group in out:
        group.runs.sort(key=lambda run: _order((*run.seeds, ())))
        group.names = _names([(*run.seeds, ()) for run in group.runs])
    labels = _labels([(g.base, len(g.runs)) for g in out], lambda i: [out[i].folder])
    for group, label in zip(out, labels, strict=True):
        group.label = label
    return out


def _settings(run: Run) -> str:
    """Return a key of all that seeds of one run have in common; the folder if it is not known."""
    clip = run.config.get("clip")
    if not run.method or run.seeds[0] is None:
        return f"folder {run.folder.resolve()}"
    facts = {
        "method": run.method,
        "settings": {k: v for k, v in run.settings.items() if k not in ("seed", *EXECUTION)},
        "classes": run.config.get("classnames"),
        "clip": (clip.get("fingerprint") or clip) if isinstance(clip, Mapping) else None,
        "data": {k: v for k, v in run.data.items() if k not in _PLACE},
    }
    return json.dumps(facts, sort_keys=True)


def over_seeds(methods: Sequence[Method], groups: Sequence[Group]) -> list[Method]:
    """Join the methods that differ only in a seed, and name all methods.

    Seeds of tuning are joined first; methods that remain single, by the seeds of the evaluations.
    """
    group_of = {run.name: group for group in groups for run in group.runs}
    seeds = {id(m): _seeds(m, group_of) for m in methods}

    def of_runs(method: Method) -> tuple[Any, ...]:
        return (*_kind(method, group_of), seeds[id(method)][2])

    def of_evaluations(method: Method) -> tuple[Any, ...]:
        return (*_kind(method, group_of), *seeds[id(method)][:2])

    found = _join([[m] for m in methods], of_runs, seeds)
    several = [own for own in found if len(own) > 1]
    found = _join([own for own in found if len(own) == 1], of_evaluations, seeds, several)
    out = [_joined(own, seeds) for own in found]
    order = {id(m): i for i, m in enumerate(methods)}
    out.sort(key=lambda m: order[id(m.first)])
    _name(out, group_of)
    return out


def _join(
    single: Iterable[list[Method]],
    key: Callable[[Method], tuple[Any, ...]],
    seeds: Mapping[int, _Seeds],
    done: Iterable[list[Method]] = (),
) -> list[list[Method]]:
    """Join methods of equal key with different seeds."""
    out: dict[tuple[Any, ...], list[list[Method]]] = {}
    for (method,) in single:
        same = out.setdefault(key(method), [])
        home = next((own for own in same if _fits(method, own, seeds)), None)
        if home is None:
            same.append([method])
        else:
            home.append(method)
    return [*done, *(own for same in out.values() for own in same)]


def _fits(method: Method, own: Sequence[Method], seeds: Mapping[int, _Seeds]) -> bool:
    mine = seeds[id(method)]
    return all(
        mine != seeds[id(other)]
        and (mine[2] != seeds[id(other)][2] or method.sources[0].images == other.sources[0].images)
        and all(
            _attack(method.cells[k].row) == _attack(other.cells[k].row)
            for k in method.cells.keys() & other.cells.keys()
        )
        for other in own
    )


def _attack(row: Mapping[str, Any]) -> Any:
    """Return the settings of a row's attack and its precision, without its seed."""

    def plain(settings: Any) -> dict[str, Any]:
        return {k: v for k, v in (settings or {}).items() if k != "seed"}

    settings = plain(row.get("settings"))
    parts = [plain(part) for part in settings.get("parts") or []]
    return {**settings, "parts": parts, "search": row.get("search_precision") or "own"}


def _kind(method: Method, group_of: Mapping[str, Group]) -> tuple[Any, ...]:
    """Return what methods of several seeds have in common: model and data."""
    source = method.sources[0]
    facts, data = dict(method.facts), source.evaluation.data
    weights = facts.pop("weights", None)
    group = group_of[source.run]
    who: Any = source.run if weights in (None, "unknown") else weights
    if _is_tuned(method, group):
        who = id(group)
    images = [data.get(key) for key in ("name", "of", "n", "classnames")]
    if not data.get("name"):
        images.append(data.get("fingerprint"))
    return who, method.model, json.dumps([facts, images], sort_keys=True)


def _is_tuned(method: Method, group: Group) -> bool:
    name = method.model
    return bool(group.runs[0].method) and (name == _TUNED or name.startswith(f"{_TUNED} + "))


def _seeds(method: Method, group_of: Mapping[str, Group]) -> _Seeds:
    group = group_of[method.sources[0].run]
    run = next(run for run in group.runs if run.name == method.sources[0].run)
    own = run.seeds if _is_tuned(method, group) else (None, None)
    known = {source.seed for source in method.sources if source.seed is not None}
    return (*own, tuple(sorted(known)))


def _joined(members: list[Method], seeds: Mapping[int, _Seeds]) -> Method:
    if len(members) == 1:
        return members[0]
    members = sorted(members, key=lambda m: _order(seeds[id(m)]))
    names = _names([seeds[id(m)] for m in members])
    first = members[0]
    every = dict.fromkeys(column for member in members for column in member.cells)
    sources = {id(s): s for member in members for s in member.sources}
    return Method(
        "",
        first.model,
        first.run,
        {column: _cell(column, members, names) for column in every},
        list(sources.values()),
        members,
        names,
    )


def _cell(column: Column, members: Sequence[Method], names: Sequence[str]) -> SeedsCell:
    found: list[tuple[Cell, str]] = []
    for member, name in zip(members, names, strict=True):
        if column in member.cells:
            found += [(cell, name) for cell in member.cells[column].each]
    return SeedsCell([cell for cell, _ in found], [name for _, name in found])


# ---- names -------------------------------------------------------------------------------------


def _order(seeds: _Seeds) -> tuple[Any, ...]:
    return tuple(-1 if seed is None else seed for seed in seeds)


def _names(seeds: Sequence[_Seeds]) -> list[str]:
    """Name seeds by those of their parts that differ; equal seeds of tuning and data are one."""

    def words(seed: Any) -> str:
        return ", ".join(map(str, seed)) if isinstance(seed, tuple) else str(seed)

    parts = [i for i in range(len(_KINDS)) if len({own[i] for own in seeds}) > 1]
    if {0, 1} <= set(parts) and all(own[0] == own[1] for own in seeds):
        parts.remove(1)
    return [", ".join(f"{_KINDS[i]} {words(own[i])}" for i in parts) for own in seeds]


def _name(methods: Sequence[Method], group_of: Mapping[str, Group]) -> None:
    """Set the labels: the tuning method in place of ``tuned``, and folders only where needed."""
    own = []
    for method in methods:
        group = group_of[method.sources[0].run]
        base = group.base + method.model[len(_TUNED) :] if _is_tuned(method, group) else ""
        own.append((base or method.model, max(len(method.members), 1)))

    def details(i: int) -> list[str]:
        method, group = methods[i], group_of[methods[i].sources[0].run]
        folder = group.folder if len(method.members) == len(group.runs) else method.sources[0].run
        return [folder, _which(method.sources[0])]

    for method, label in zip(methods, _labels(own, details), strict=True):
        method.label = label
        for member, name in zip(method.members, method.names, strict=True):
            member.label = f"{label}, {name}"


def _which(source: Source) -> str:
    return f"evaluation {source.name}" if source.name else "own result"


def _labels(names: Sequence[tuple[str, int]], details: Callable[[int], Sequence[str]]) -> list[str]:
    """Return distinct labels: a name, the number of seeds, and details of names that are equal.

    Of the details of equal names, the first that differ are used; at last, a number.
    """
    several = {name for name, count in names if count > 1}
    added = [[f"{count} seeds"] if count > 1 else [] for _, count in names]

    def label(i: int) -> str:
        return f"{names[i][0]} ({', '.join(added[i])})" if added[i] else names[i][0]

    for step in range(len(details(0)) if names else 0):
        equal: dict[str, list[int]] = {}
        for i in range(len(names)):
            equal.setdefault(label(i), []).append(i)
        for same in equal.values():
            # a run beside seeds of its method is named even if it is the only one
            beside = step == 0 and names[same[0]][0] in several and not added[same[0]]
            if beside or len({details(i)[step] for i in same}) > 1:
                for i in same:
                    added[i].append(details(i)[step])
    labels = [label(i) for i in range(len(names))]
    taken, numbers = Counter(labels), Counter[str]()
    for i, text in enumerate(labels):
        if taken[text] > 1:
            numbers[text] += 1
            labels[i] = f"{text} {numbers[text]}"
    return labels
