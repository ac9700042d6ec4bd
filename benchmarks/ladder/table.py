"""Formats the ladder's Markdown tables: short for the README, whole for docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..common.clips import OURS, OURS_FP32
from ..common.report import NOT_YET, markdown
from .result_file import FILE, Groups, Row

BETWEEN = ("eager-hoisted", "eager-careful", "compiled")
CAREFUL = ("eager-careful", "compiled")
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
    return [
        _base(base),
        *(_speed_up(rungs, rung) for rung in columns),
        _speed_up(rungs, OURS, "**"),
        times(ours.ceiling) if ours and ours is not base else "",
        *("" if rung == base.rung else times(over(rungs, rung)) for rung in BETWEEN[:2]),
        share(ours),
    ]


def _base(base: Row) -> str:
    """Format the baseline's time, with its name if it is not eager."""
    stands_in = "" if base.rung == BASELINES[0] else f" ({base.rung})"
    return f"{duration(base.median)}{stands_in}"


def _speed_up(rungs: Mapping[str, Row], rung: str, mark: str = "") -> str:
    """Format a speed-up over the baseline as ``9.0x``, in bfloat16 as ``9.0x bf16``."""
    row = rungs.get(rung)
    if row is None or row is _baseline(rungs):
        return ""
    return f"{mark}{times(row.ratio)}{mark}{' bf16' if _low(row) else ''}"


def _low(row: Row) -> bool:
    return row.machine.get("dtype") == "bfloat16"


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
    """Format the README's table: speed-ups over the baseline, and fastprompt's share of the limit.

    The column of fastprompt with ``precision="auto"`` is left out where that is float32.
    """
    chosen = {n: rungs for n, rungs in telling(groups).items() if n.startswith(README_GROUPS)}
    low = any(OURS in rungs and _low(rungs[OURS]) for rungs in chosen.values())
    rows = []
    for name, rungs in chosen.items():
        best = max((r for r in CAREFUL if r in rungs), key=lambda r: rungs[r].ratio, default="")
        auto = _speed_up(rungs, OURS, "**")
        rows.append(
            [
                f"`{name}`",
                _base(_baseline(rungs)),
                _speed_up(rungs, best),
                _in_float32(rungs),
                *([auto] if low else []),
                share(rungs.get(OURS)),
            ]
        )
    ours = [f"{OURS}, float32", *([f"{OURS}, auto"] if low else [])]
    return markdown(["group", "eager, float32", "careful", *ours, "share of the limit"], rows)


def _in_float32(rungs: Mapping[str, Row]) -> str:
    """Format fastprompt's speed-up in float32, which is that of "auto" if nothing is faster."""
    alone = OURS in rungs and not _low(rungs[OURS])
    return _speed_up(rungs, OURS, "**") if alone else _speed_up(rungs, OURS_FP32, "**")


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
