"""The table of a protocol, from the evaluations of its cells."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..evaluation import Evaluation
from ..evaluation.plan import has_last_iterates
from ..report.comparison import radius
from ..report.runs import check_one_scoring
from .cells import Cell, Judged, words_of_shots
from .plan import Plan

AVERAGE, HARMONIC = "average", "H"
HALVES = ("base", "new")
Seeds = dict[int | None, float]  # accuracy by seed; that of zero-shot has the seed None


@dataclass
class Row:
    """A row of the table.

    Attributes:
        data: data set of tuning; empty if there is only one.
        method, attack, eps: method, and attack and radius under which it is judged.
        values: accuracies in [0, 1] by column and seed.
        distrusted: columns that are not to be trusted.
    """

    data: str
    method: str
    attack: str
    eps: float
    values: dict[str, Seeds] = field(default_factory=dict)
    distrusted: set[str] = field(default_factory=set)

    @property
    def accuracy(self) -> str:
        """What is in the row, such as ``pgd-100 at 1/255``."""
        return words_of(vars(self))

    def mean(self, column: str) -> float | None:
        """Return the mean over the seeds; None without a value.

        The harmonic mean is that of the means, as in the papers' tables.
        """
        if column == HARMONIC and column in self.values:
            return statistics.harmonic_mean([self.mean(part) or 0.0 for part in HALVES])
        found = list(self.values.get(column, {}).values())
        return statistics.fmean(found) if found else None

    def std(self, column: str) -> float | None:
        """Return the sample standard deviation over the seeds; None for fewer than two."""
        found = list(self.values.get(column, {}).values())
        return statistics.stdev(found) if len(found) > 1 else None


@dataclass(frozen=True)
class Table:
    """The result of a protocol.

    Attributes:
        protocol: its name.
        columns: numbers of shots, halves of the classes with their harmonic mean, or data sets.
        rows: one for each data set of tuning, method, and attack with radius.
        scoring: how all rows are scored.
        caption: what the numbers are.
        notes: what is to be known of them, such as reasons not to trust them.
    """

    protocol: str
    columns: list[str]
    rows: list[Row]
    scoring: str
    caption: str
    notes: list[str]

    def mean(self, method: str, column: str, attack: str = "clean", data: str = "") -> float:
        """Return the mean accuracy of a method in a column; ``attack`` as in `Row.accuracy`.

        Raises:
            KeyError: there is no such value.
        """
        for row in self.rows:
            same = (row.method, row.accuracy, row.data) == (method, attack, data or row.data)
            if same and (found := row.mean(column)) is not None:
                return found
        raise KeyError(f"no value of {method!r} in {column!r} for {attack!r}")


def words_of(row: Mapping[str, Any]) -> str:
    """Return the attack and radius of a row of an evaluation."""
    eps = row["eps"]
    return f"{row['attack']} at {radius(eps)}" if eps else str(row["attack"])


def collect(plan: Plan, found: Iterable[tuple[Cell, Judged, Evaluation]]) -> Table:
    """Make the table of a plan's evaluations.

    Raises:
        ValueError: some evaluations are scored strictly, and some as published.
    """
    rows: dict[tuple[Any, ...], Row] = {}
    evaluations, notes = [], list(plan.notes)
    shots = [str(s) for s in plan.facts["shots"]]
    several = len({cell.data for cell in plan.cells}) > 1
    pictures: dict[tuple[str, str], str] = {}
    for cell, judged, evaluation in found:
        evaluations.append(evaluation)
        own_pictures = evaluation.data["fingerprint"]
        if pictures.setdefault((judged.data, judged.classes), own_pictures) != own_pictures:
            raise ValueError(
                f"data: the test images of {judged.data} have changed since other cells were "
                f"judged: those of {cell.title} are others; start the protocol again"
            )
        own = shots if cell.shots is None else [str(cell.shots)]
        for r in evaluation.rows:
            key = (cell.label if several else "", cell.method, r["attack"], r["eps"])
            row = rows.setdefault(key, Row(*key))
            for column in [judged.column] if judged.column else own:
                row.values.setdefault(column, {})[cell.seed] = r["accuracy"]
                if not evaluation.trusted:
                    row.distrusted.add(column)
        where = f"{cell.title}{f' ({judged.column})' if judged.column else ''}"
        notes += [f"not to be trusted: {where}: {why}" for why in evaluation.reasons]
    scoring = check_one_scoring(evaluations)
    table = _by_data(list(rows.values()), plan)
    if several:
        table += _averages(table)
    columns = list(dict.fromkeys(column for row in table for column in row.values))
    if plan.facts["protocol"] == "few-shot":
        columns = shots
    _derive(plan, table, columns)
    return Table(
        plan.facts["protocol"], columns, table, scoring, _caption(plan, evaluations, scoring), notes
    )


def _by_data(rows: list[Row], plan: Plan) -> list[Row]:
    """Order the rows by data set, then attack with radius, then method."""
    labels, methods = list(plan.labels.values()), plan.facts["methods"]
    kinds = list(dict.fromkeys((row.attack, row.eps) for row in rows))
    return sorted(
        rows,
        key=lambda r: (
            labels.index(r.data) if r.data else 0,
            kinds.index((r.attack, r.eps)),
            methods.index(r.method),
        ),
    )


def _averages(rows: Sequence[Row]) -> list[Row]:
    """Return rows with the means over the data sets, for each seed."""
    groups: dict[tuple[str, str, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.method, row.attack, row.eps), []).append(row)
    out = []
    for key, same in groups.items():
        mean = Row(AVERAGE, *key, distrusted=set().union(*(row.distrusted for row in same)))
        for column in same[0].values:
            mean.values[column] = _each(statistics.fmean, [row.values[column] for row in same])
        out.append(mean)
    return out


def _derive(plan: Plan, rows: Sequence[Row], columns: list[str]) -> None:
    """Add the harmonic mean of base and new, or the mean over the sets that were not tuned on."""
    name = plan.facts["protocol"]
    if name == "base-to-new":
        parts, column = list(HALVES), HARMONIC
    elif plan.protocol.single:
        parts, column = columns[1:], AVERAGE
    else:
        return
    mean: Any = statistics.harmonic_mean if column == HARMONIC else statistics.fmean
    for row in rows:
        row.values[column] = _each(mean, [row.values[part] for part in parts])
        if row.distrusted & set(parts):
            row.distrusted.add(column)
    columns.append(column)


def _each(mean: Any, parts: Sequence[Mapping[int | None, float]]) -> Seeds:
    """Return the mean of the parts for each seed."""
    return {seed: mean([part[seed] for part in parts]) for seed in parts[0]}


def _caption(plan: Plan, evaluations: Sequence[Evaluation], scoring: str) -> str:
    facts, seeds = plan.facts, plan.facts["seeds"]
    spread = (
        f"mean over the seeds {', '.join(map(str, seeds))} with sample standard deviations"
        if len(seeds) > 1
        else f"seed {seeds[0]}"
    )
    draw = f", {words_of_shots(facts['shots'][0])}" if len(facts["shots"]) == 1 else ""
    images = sorted({evaluation.data["n"] for evaluation in evaluations})
    n = f"{images[0]:,}" if len(images) == 1 else f"{images[0]:,} to {images[-1]:,}"
    attacks = dict.fromkeys(r["attack"] for e in evaluations for r in e.rows)
    others = [a for a in attacks if a != "clean" and not has_last_iterates(a)]
    how = "an image counts as robust if it is right clean and under each iterate"
    if scoring != "strict" and any(map(has_last_iterates, attacks)):
        but = f", but under {', '.join(others)} {how}" if others else ""
        how = f"accuracy on the last iterates of all images{but}"
    return (
        f"{facts['protocol']} on {plan.clip.name}: {plan.protocol.about}{draw}; accuracy in %, "
        f"{spread}, on {n} test images; {facts['scoring']} scoring: {how}"
    )
