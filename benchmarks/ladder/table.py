"""Formats the ladder's Markdown tables: short for the README, whole for docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..common.report import NOT_YET, markdown
from .result_file import FILE, Groups, Row

OURS = "fastprompt"
BETWEEN = ("eager-hoisted", "eager-careful", "compiled")
BASELINES = ("eager", "torchattacks")  # another baseline replaces one that is skipped
# operations in the README's table; docs/benchmarks.md has all of them
README_KERNELS = ("mixture_logits",)
# groups in the README's table
README_GROUPS = ("peers/pgd", "drop-in/", "kernels/", "step/", "towers/text")
# facts in a caption, and their formats
FACTS = {
    "card": "{}",
    "processor": "{}",
    "threads": "{} threads",
    "torch": "torch {}",
    "triton": "triton {}",
    "dtype": "{}",
}


def times(ratio: float | None) -> str:
    """Format a ratio as ``8.3x``; None as an empty string."""
    if ratio is None:
        return ""
    return (
        f"{ratio:.0f}x" if ratio >= 99.5 else f"{ratio:.2g}x" if ratio < 0.995 else f"{ratio:.1f}x"
    )


def duration(seconds: float) -> str:
    """Format seconds with three digits, in s, ms or µs."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= 0.9995 * size:
            return f"{_three(seconds / size)} {unit}"
    return f"{_three(seconds / 1e-6)} µs"


def _three(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"


def telling(groups: Groups) -> dict[str, Mapping[str, Row]]:
    """Select the README's groups: of each ``<layer>/<what>`` the size with the slowest baseline.

    Sizes without the eager implementation rank last. Of the operations only those in
    `README_KERNELS` are selected, at the first size of their sweeps.
    """
    chosen: dict[str, tuple[tuple[bool, float], str]] = {}
    for name, rungs in groups.items():
        layer, what, _ = (*name.split("/", 2), "", "")[:3]
        if layer == "kernels" and not what.startswith(README_KERNELS):
            continue
        base = _baseline(rungs)
        key = f"{layer}/{what}"
        if layer == "kernels" and key in chosen:
            continue
        weight = (base.rung in BASELINES, base.median)
        chosen[key] = max(chosen.get(key, (weight, name)), (weight, name))
    names = {name for _, name in chosen.values()}
    return {name: rungs for name, rungs in groups.items() if name in names}


def _baseline(rungs: Mapping[str, Row]) -> Row:
    """Return the baseline's row, or the slowest one if the baseline's test was not selected."""
    name = next(iter(rungs.values())).baseline
    return rungs.get(name) or min(rungs.values(), key=lambda row: row.ratio)


def over(rungs: Mapping[str, Row], other: str) -> float | None:
    """Return fastprompt's speed-up over another implementation."""
    if OURS not in rungs or other not in rungs:
        return None
    return rungs[OURS].ratio / rungs[other].ratio


def between(groups: Groups) -> list[str]:
    """Return the columns: neither baselines nor fastprompt, the known implementations first."""
    found = {row.rung: None for rungs in groups.values() for row in rungs.values()}
    ends = {OURS, *BASELINES}
    known = [rung for rung in BETWEEN if rung in found]
    return known + [rung for rung in found if rung not in ends and rung not in known]


def _cells(rungs: Mapping[str, Row], columns: Sequence[str]) -> list[str]:
    base, ours = _baseline(rungs), rungs.get(OURS)
    stands_in = "" if base.rung == BASELINES[0] else f" ({base.rung})"
    ratios = ["" if rung == base.rung else times(_ratio(rungs, rung)) for rung in columns]
    return [
        f"{duration(base.median)}{stands_in}",
        *ratios,
        f"**{times(ours.ratio)}**" if ours and ours is not base else "",
        times(ours.ceiling) if ours and ours is not base else "",
        *("" if rung == base.rung else times(over(rungs, rung)) for rung in BETWEEN[:2]),
        share(ours),
    ]


def _ratio(rungs: Mapping[str, Row], rung: str) -> float | None:
    return rungs[rung].ratio if rung in rungs else None


def share(row: Row | None) -> str:
    """Format as ``78 % (matmul)``; empty if not counted."""
    if row is None or row.share_of_limit is None:
        return ""
    return f"{100 * row.share_of_limit:.0f} % ({row.limit})"


def _head(columns: Sequence[str]) -> list[str]:
    return [
        "group",
        "eager",
        *columns,
        OURS,
        "by FLOPs",
        "over hoisted",
        "over careful",
        "share of the limit",
    ]


def short_table(groups: Groups) -> str:
    """Format the README's table: speed-up over the baseline and over eager-careful."""
    rows = []
    for name, rungs in telling(groups).items():
        if name.startswith(README_GROUPS):
            base, *_, ours = _cells(rungs, ())[:2]
            rows.append([f"`{name}`", base, ours, times(over(rungs, "eager-careful"))])
    return markdown(["group", "eager", OURS, "over eager-careful"], rows)


def whole_table(groups: Groups) -> str:
    """Format every group, with fastprompt's seconds, range of ratios and error."""
    columns = between(groups)
    more = [OURS, "ratio over the rounds", "largest error"]
    rows = []
    for name, rungs in groups.items():
        ours = rungs.get(OURS)
        seconds = duration(ours.median) if ours else ""
        rows.append([f"`{name}`", *_cells(rungs, columns), seconds, _range(ours), _error(ours)])
    return markdown([*_head(columns), *more], rows)


def _range(row: Row | None) -> str:
    if row is None or row.rung == row.baseline:
        return ""
    return " to ".join(map(times, row.ratio_range))


def _error(row: Row | None) -> str:
    if row is None or row.rung == row.baseline or row.largest_error is None:
        return ""
    return f"{row.largest_error:.0e}"


def caption(machine: str, groups: Groups, folder: str) -> str:
    """Describe the machine and link the raw file.

    Args:
        folder: of all results, as linked from the page.
    """
    rows = [row for rungs in groups.values() for row in rungs.values()]
    facts = [_fact(rows, key, words) for key, words in FACTS.items()]
    known = ", ".join(fact for fact in facts if fact)
    return f"{known} ([{machine}/{FILE}]({folder}/{machine}/{FILE})):"


def _fact(rows: Sequence[Row], key: str, words: str) -> str:
    """Format all values of a fact in the rows."""
    values = {str(row.machine[key]): None for row in rows if row.machine.get(key) is not None}
    return words.format(" or ".join(values)) if values else ""


def blocks(ladders: Mapping[str, Groups], folder: str, table: Callable[[Groups], str]) -> str:
    """Format each machine's table below its caption."""
    parts = [
        f"{caption(machine, groups, folder)}\n\n{table(groups)}"
        for machine, groups in ladders.items()
    ]
    return "\n\n".join(parts) or f"The ladder: {NOT_YET}."
