"""The regression guard: compares a run's ratios with the committed ones.

python -m benchmarks.ladder.guard RUN.json                  # against this machine's committed file
python -m benchmarks.ladder.guard RUN.json --against FILE

Prints each implementation that lost more than a fifth of its ratio to the baseline and exits with
1. Ratios are compared, not times, and only at equal sizes, threads and dtype.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.paths import results
from .result_file import FILE, Row, by_group, read

SHARE = 0.2


@dataclass(frozen=True)
class Loss:
    """An implementation whose ratio to the baseline decreased."""

    group: str
    rung: str
    now: float
    was: float

    def __str__(self) -> str:
        return f"{self.group} {self.rung}: {self.now:.3g}x, was {self.was:.3g}x"


@dataclass(frozen=True)
class Comparison:
    """Comparison of a run with the committed file.

    Attributes:
        compared: number of implementations in both files, without baselines.
        losses: of more than the allowed share.
        new: groups, or implementations of common groups, only in the run.
        missing: groups, or implementations of common groups, only in the committed file.
        unlike: groups with different sizes or settings, with the difference.
    """

    compared: int
    losses: Sequence[Loss]
    new: Sequence[str]
    missing: Sequence[str]
    unlike: Sequence[str]


def compare(run: Sequence[Row], committed: Sequence[Row], share: float = SHARE) -> Comparison:
    """Compare the ratios of each implementation.

    Args:
        share: of the committed ratio that may be lost.

    Raises:
        ValueError: ``share`` is negative or not below 1.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share must be at least 0 and below 1, got {share}")
    now, was = ({(r.group, r.rung): r for r in rows} for rows in (run, committed))
    differing = {k: why for k in now.keys() & was.keys() if (why := _differing(now[k], was[k]))}
    unlike = {group: why for (group, _), why in sorted(differing.items())}
    common = [k for k in now if k in was and k[0] not in unlike and k[1] != now[k].baseline]
    losses = [
        Loss(*key, now[key].ratio, was[key].ratio)
        for key in common
        if now[key].ratio < (1 - share) * was[key].ratio
    ]
    return Comparison(
        len(common),
        losses,
        _only_in(run, committed),
        _only_in(committed, run),
        [f"{group} ({why})" for group, why in unlike.items()],
    )


def _differing(now: Row, was: Row) -> str:
    """Describe how two rows' baselines and settings differ."""
    new, old = ({"baseline": row.baseline, **row.settings} for row in (now, was))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(f"{key} {new.get(key)}, was {old.get(key)}" for key in keys)


def _only_in(rows: Sequence[Row], others: Sequence[Row]) -> list[str]:
    there, found = by_group(others), []
    for group, rungs in by_group(rows).items():
        if group not in there:
            found.append(group)
        else:
            found += [f"{group} {rung}" for rung in rungs if rung not in there[group]]
    return found


def lines(found: Comparison, share: float = SHARE) -> list[str]:
    """Format a comparison as text, losses first."""
    lost = f"{len(found.losses)} of {found.compared} compared" if found.losses else "none"
    out = [f"rungs that lost more than {100 * share:.0f} % of their ratio: {lost}"]
    out += [f"  {loss}" for loss in found.losses]
    apart = {
        "not compared, because of different settings": found.unlike,
        "not in the committed file": found.new,
        "committed, not in this run": found.missing,
    }
    return out + [f"{what}: {', '.join(names)}" for what, names in apart.items() if names]


def summarize(rows: Sequence[Row], committed_path: Path) -> list[str]:
    """Compare the rows of a pytest run with the committed ones; return lines of text.

    An unreadable file is reported and raises no error, so that the run's results are not lost. The
    file is empty, for example, if ``--benchmark-json`` names it: pytest-benchmark opens it at the
    start.
    """
    if not rows:
        return []
    try:
        committed = read(committed_path)
    except (FileNotFoundError, ValueError) as error:
        return [f"nothing to compare with: {error}"]
    return lines(compare(rows, committed))


def main(run: Path, against: Path, share: float = SHARE) -> int:
    """Compare two files, print the result, and return 1 if an implementation lost too much.

    Args:
        run: written by ``pytest benchmarks --benchmark-only --benchmark-json``.
        against: the file with the reference ratios.
        share: of a ratio that may be lost.
    """
    found = compare(read(run), read(against), share)
    print("\n".join(lines(found, share)))
    return 1 if found.losses else 0


def arguments(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Parse the command line."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="python -m benchmarks.ladder.guard", description=__doc__)
    parser.add_argument("run", type=Path, help="JSON file of a run of the ladder")
    parser.add_argument("--against", type=Path, default=results() / FILE, help="reference ratios")
    parser.add_argument("--share", type=float, default=SHARE, help="allowed relative loss")
    return parser.parse_args(args).as_dict()


if __name__ == "__main__":
    sys.exit(main(**arguments()))
