"""Draws the speed-ups, and cost and memory against the number of classes."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter

from ..common.clips import OURS, OURS_FP32
from ..common.report import NOT_YET
from ..growth.curves import Curves
from .result_file import Groups, Row
from .table import BASELINES, between, telling, times

# the report's light theme: an image does not follow the page's theme
_INK, _RULE, _PAPER = "#1c2127", "#c9ced6", "#ffffff"
_COLORS = {
    "eager": "#4c535c",
    "eager-hoisted": "#826100",
    "eager-careful": "#9a3f80",
    "compiled": "#c2480a",
    OURS_FP32: "#6c9cc4",
    OURS: "#0069a8",
}
_OTHER, _MARKERS = "#007a5a", "osD^v"
_STYLE: Any = {
    **{"font.size": 9, "font.family": "sans-serif"},
    # text as text, and reproducible ids
    **{"svg.fonttype": "none", "svg.hashsalt": "fastprompt"},
    **{"text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _RULE},
    **{"xtick.color": _RULE, "ytick.color": _RULE, "xtick.labelcolor": _INK},
    **{"ytick.labelcolor": _INK, "grid.color": _RULE, "grid.linewidth": 0.5},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True},
}
_BAR = 0.2  # height of a bar, relative to the distance between groups


def words(ladders: Mapping[str, Groups], growth: Mapping[str, Curves]) -> str:
    """Return everything drawn as text, for screen readers and to detect an outdated drawing."""
    parts = []
    for machine, groups in ladders.items():
        for name, rungs in telling(groups).items():
            ratios = (f"{r} {times(row.ratio)}" for r, row in rungs.items() if r != row.baseline)
            parts.append(f"{machine}, {name}: {', '.join(ratios)}")
    for machine, drawn in growth.items():
        for rung, points in drawn.items():
            each = "; ".join(
                f"{p.classes} classes"
                + (f" {p.seconds:.3g} s" if p.seconds is not None else "")
                + (f" {p.peak_bytes / 2**20:.3g} MiB" if p.peak_bytes is not None else "")
                for p in points
            )
            parts.append(f"{machine}, {rung}: {each}")
    return ". ".join(parts)


def draw(ladders: Mapping[str, Groups], growth: Mapping[str, Curves]) -> str:
    """Return an SVG with a row of three panels per machine; equal results give equal text."""
    machines = sorted({*ladders, *growth})
    bars = {machine: telling(ladders.get(machine, {})) for machine in machines}
    heights = [max(3.6, 0.45 * len(groups)) for groups in bars.values()]
    with rc_context(_STYLE):
        figure = Figure(figsize=(10, sum(heights)), layout="constrained", facecolor=_PAPER)
        panels = figure.subplots(
            len(machines), 3, squeeze=False, width_ratios=(1.3, 1, 1), height_ratios=heights
        )
        for machine, (speed, cost, memory) in zip(machines, panels, strict=True):
            _speed_ups(speed, bars[machine])
            speed.set_title(f"{machine}: times as fast as the baseline", fontsize=9, loc="left")
            points = growth.get(machine, {})
            _against_classes(cost, points, "seconds", 1.0)
            cost.set_title("a step's seconds", fontsize=9, loc="left")
            _against_classes(memory, points, "peak_bytes", 2**20)
            memory.set_title("its peak memory, MiB", fontsize=9, loc="left")
        _legend(figure, ladders, growth)
        return _svg(figure, words(ladders, growth))


def _legend(figure: Figure, ladders: Mapping[str, Groups], growth: Mapping[str, Curves]) -> None:
    shown = {
        rung for groups in ladders.values() for rungs in telling(groups).values() for rung in rungs
    }
    shown |= {rung for rungs in growth.values() for rung in rungs}
    order = [*(r for r in _COLORS if r in shown), *sorted(shown - {*_COLORS, *BASELINES})]
    handles = [Patch(color=_color(rung)) for rung in order]
    figure.legend(
        handles, order, loc="outside lower center", ncols=max(1, len(order)), frameon=False
    )


def _color(rung: str) -> str:
    return _COLORS.get(rung, _OTHER)


def _speed_ups(axes: Any, groups: Groups) -> None:
    """Draw bars that start at 1x, the baseline, with the groups from top to bottom."""
    if not groups:
        _nothing(axes)
        return
    for at, rungs in enumerate(groups.values()):
        bars = [row for row in _ordered(rungs) if row.rung not in (row.baseline, *BASELINES)]
        for i, row in enumerate(bars):
            place = at + (i - (len(bars) - 1) / 2) * _BAR
            axes.barh(place, row.ratio - 1, 0.9 * _BAR, left=1, color=_color(row.rung))
            if row.rung == OURS:
                said, end = times(row.ratio), (max(row.ratio, 1), place)
                axes.annotate(said, end, (3, 0), textcoords="offset points", va="center", size=7)
    axes.set_yticks(range(len(groups)), list(groups), fontsize=8)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}x")
    axes.axvline(1, color=_INK, linewidth=0.8)
    axes.margins(x=0.12)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)


def _against_classes(axes: Any, rungs: Curves, what: str, unit: float) -> None:
    drawn = False
    for i, (rung, points) in enumerate(rungs.items()):
        known = [(p.classes, getattr(p, what)) for p in points if getattr(p, what) is not None]
        if known:
            x, y = zip(*sorted(known), strict=True)
            marker = _MARKERS[i % len(_MARKERS)]
            style = {"color": _color(rung), "marker": marker, "markersize": 4, "linewidth": 1.6}
            axes.plot(x, [value / unit for value in y], **style)
            drawn = True
    if not drawn:
        _nothing(axes)
        return
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("classes")
    axes.grid()
    _plain(axes.yaxis)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")


def _ordered(rungs: Mapping[str, Row]) -> list[Row]:
    """Return the implementations in the table's order, fastprompt last."""
    names = [*between({"": rungs}), OURS]
    return [rungs[name] for name in names if name in rungs]


def _plain(axis: Any) -> None:
    """Place ticks at 1, 3, 10, 30, ..., as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 3)))
    axis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.set_minor_formatter(NullFormatter())


def _nothing(axes: Any) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, NOT_YET, ha="center", va="center", transform=axes.transAxes)


def _svg(figure: Figure, said: str) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    # the metadata contains links to other hosts
    text = re.sub(r"<metadata\b.*?</metadata>\s*", "", out.getvalue(), flags=re.S)
    text = re.sub(r"<!--.*?-->\s*", "", text[text.index("<svg") :], flags=re.S)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(said)}" ', 1)
