"""What a plan costs, counted before it runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from ..data.few_shot import class_range
from ..evaluation.plan import plan_attacks
from ..evaluation.stages import How
from ..tuning.config import TunerConfig
from .cells import Cell, Shots
from .plan import Plan
from .scoring import STRICT


@dataclass(frozen=True)
class Cost:
    """Costs of cells.

    Attributes:
        tunings: runs with tuning.
        steps: optimizer steps.
        images: evaluated images, counted once clean and once per attack and radius.
        passes: forward passes of images, at most, since attacks stop at an image that is fooled.
    """

    tunings: int = 0
    steps: int = 0
    images: int = 0
    passes: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def cost_of(plan: Plan, cell: Cell) -> Cost:
    """Return the cost of a cell."""
    attacks, eps = plan.judging(cell.method)
    how = How(stop=plan.facts["scoring"] == STRICT)
    planned = plan_attacks(attacks, eps, how)
    each = 1 + sum(stage.last + 1 for attack in planned for stage in attack.stages)
    images = sum(_tested(plan, j.data, j.classes) for j in cell.judged)
    out = Cost(images=images * (1 + len(planned)), passes=images * each)
    if not cell.tuned or cell.shots is None:
        return out
    config = plan.config_of(cell)
    n = _drawn(_chosen(plan.sets[cell.data].counts("train"), cell.classes), cell.shots)
    batches = math.ceil(config.used(n) / config.batch)
    steps = config.epochs * math.ceil(batches / config.accumulate)
    return out + Cost(1, steps, 0, _tuning_passes(cell.method, config, n))


def _tuning_passes(method: str, config: TunerConfig, n: int) -> int:
    attack = 0 if method == "coop" else getattr(config, "steps", 0)
    if method == "advpt":  # attacks once, and encodes no image afterwards
        return n * (attack + 1)
    return config.epochs * config.used(n) * (attack + 1)


def _chosen(counts: Sequence[int], classes: str | None) -> list[int]:
    return [counts[i] for i in class_range(len(counts), classes or "all")]  # type: ignore[arg-type]


def _drawn(counts: Sequence[int], shots: Shots) -> int:
    return sum(n if shots == "all" else min(n, shots) for n in counts)


def _tested(plan: Plan, name: str, classes: str) -> int:
    n = sum(_chosen(plan.sets[name].counts("test"), classes))
    return n if plan.facts["limit"] is None else min(n, plan.facts["limit"])


def describe(plan: Plan) -> str:
    """Return the plan and its cost as text."""
    facts, total = plan.facts, sum((cost_of(plan, cell) for cell in plan.cells), Cost())
    lines = [f"{facts['protocol']}: {plan.protocol.about}", f"model: {plan.clip.name}"]
    for name, data in plan.sets.items():
        counts = {part: sum(data.counts(part)) for part in ("train", "test") if _has(data, part)}
        words = ", ".join(f"{n:,} {part}" for part, n in counts.items())
        splits = f"; {data.splits}" if data.splits else ""
        lines.append(f"data: {name}: {len(data.classnames)} classes, {words} images{splits}")
    for method in facts["methods"]:
        attacks, eps = plan.judging(method)
        radii = ", ".join(eps)
        lines.append(f"judged: {method}: {', '.join(attacks)} at {radii} ({facts['scoring']})")
    lines += plan.notes
    cells = len(plan.cells)
    lines += [f"{i:>{len(str(cells))}}. {cell.title}" for i, cell in enumerate(plan.cells, 1)]
    lines.append(
        f"{cells} cells: {total.tunings:,} tunings of {total.steps:,} optimizer steps; "
        f"{total.images:,} evaluated images; at most {total.passes:,} forward passes of images, "
        "most of them also backward"
    )
    return "\n".join(lines)


def _has(data: object, part: str) -> bool:
    try:
        return bool(data.counts(part))  # type: ignore[attr-defined]
    except ValueError:
        return False
