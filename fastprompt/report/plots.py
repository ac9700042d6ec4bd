"""Line plots as inline SVG that use the colors of the page."""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# placeholder colors used nowhere else; `_svg` replaces them with the CSS colors of the page
_INK, _RULE = "#010203", "#010204"
SERIES = 6  # number of colors; further lines repeat them with other dashes and markers
_COLORS = {_INK: "currentColor", _RULE: "var(--rule)"}
_DRAWN = [f"#0102{5 + i:02x}" for i in range(SERIES)]
_COLORS |= {color: f"var(--series-{i + 1})" for i, color in enumerate(_DRAWN)}
_DASHES: Sequence[Any] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
_SHAPES = {  # SVG paths of matplotlib's markers, for the legend
    "o": "M13 6a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "s": "M13.5 2.5h7v7h-7z",
    "D": "M17 1l5 5-5 5-5-5z",
    "^": "M17 1.5l4.5 8.5h-9z",
    "v": "M17 10.5l4.5-8.5h-9z",
    "P": "M15.5 2h3v2.5H21v3h-2.5V10h-3V7.5H13v-3h2.5z",
}
_MARKERS = tuple(_SHAPES)
_STYLE: Any = {
    **{"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "fastprompt"},
    **{"text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _RULE},
    **{"xtick.color": _RULE, "ytick.color": _RULE, "xtick.labelcolor": _INK},
    **{"ytick.labelcolor": _INK, "grid.color": _RULE, "grid.linewidth": 0.5},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False},
    **{"xtick.major.size": 3, "ytick.major.size": 0, "axes.axisbelow": True},
}
_SIZE = (4.2, 2.5)  # inches; small, so that text stays readable on a phone


@dataclass(frozen=True)
class Series:
    """A line of a plot.

    Attributes:
        label: its name in the legend.
        x, y: coordinates of its points.
        band: lower and upper ends of the intervals.
        style: index of its color and marker; ``dashed`` distinguishes two lines of one color.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: int
    band: tuple[Sequence[float], Sequence[float]] | None = None
    dashed: bool = False


@dataclass(frozen=True)
class Key:
    """An entry of the legend: a label and an SVG sample of the line."""

    label: str
    drawn: Markup


@dataclass(frozen=True)
class Plot:
    """Attributes:

    title: heading of the plot.
    svg: the drawing.
    legend: one entry per line.
    """

    title: str
    svg: Markup
    legend: list[Key]


def draw(
    title: str,
    series: Sequence[Series],
    labels: tuple[str, str],
    *,
    percent: bool = False,
    steps: bool = False,
    whole: bool = False,
    ticks: Sequence[float] = (),
) -> Plot:
    """Draw a line plot.

    Args:
        labels: labels of the horizontal and the vertical axis.
        percent: the values are per cent; the vertical axis ranges from 0 to 100.
        steps: draw a step function: each value holds until the next point.
        whole: put ticks of the horizontal axis at whole numbers.
        ticks: ticks of the horizontal axis; by default matplotlib's choice.
    """
    with rc_context(_STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained", facecolor="none")
        axes = figure.add_subplot(facecolor="none")
        for line in series:
            _line(axes, line, steps)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.grid(axis="y")
        # an offset such as 1e-5+2.8654 above the axis reads like a unit: label ticks in full
        axes.ticklabel_format(axis="y", useOffset=False)
        if percent:
            axes.set_ylim(0, 103)
            axes.set_yticks([0, 25, 50, 75, 100])
        if ticks:
            axes.set_xticks(ticks, [f"{at:.4g}" for at in ticks])
        elif whole:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        svg = _svg(figure)
    words = "; ".join(f"{line.label}: {_words(line)}" for line in series)
    return Plot(title, _named(svg, f"{title}. {words}"), [_key(line) for line in series])


def _look(line: Series) -> tuple[str, Any, str]:
    turn = line.style // SERIES
    dash = _DASHES[(turn + line.dashed) % len(_DASHES)]
    return _DRAWN[line.style % SERIES], dash, _MARKERS[line.style % len(_MARKERS)]


def _line(axes: Any, line: Series, steps: bool) -> None:
    color, dash, marker = _look(line)
    axes.plot(
        line.x,
        line.y,
        color=color,
        linestyle=dash,
        linewidth=1.6,
        marker=marker,
        # mark some of many points, since color alone does not distinguish the lines
        markevery=math.ceil(len(line.x) / 8),
        markersize=4,
        clip_on=False,  # do not clip half of a line at 0
        drawstyle="steps-post" if steps else "default",
    )
    if line.band is not None:
        axes.fill_between(line.x, *line.band, color=color, alpha=0.13, linewidth=0)


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    quiet = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(out, format="svg", metadata=quiet)
    # the metadata contains URLs of other hosts, and the style sheet would apply to the whole page
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", out.getvalue(), flags=re.S)
    text = text[text.index("<svg") :]
    for stand_in, color in _COLORS.items():
        text = text.replace(stand_in, color)
    return text


def _named(svg: str, words: str) -> Markup:
    """Remove fixed size and unused ids from the SVG and add ``words`` as its accessible label."""
    found = re.match(r"<svg[^>]*>", svg)
    box = re.search(r'viewBox="[^"]*"', svg)
    if found is None or box is None:
        raise RuntimeError("matplotlib drew no SVG with a viewBox")
    body = svg[found.end() :].replace("xlink:href", "href")
    # drop ids that are not referenced; make the others unique on the page
    used = {name: f"{_short(words)}-{i}" for i, name in enumerate(_references(body))}
    body = re.sub(r' id="([^"]*)"', lambda m: _renamed(m[1], used), body)
    body = re.sub(r"(url\(#|href=\"#)([^)\"]*)", lambda m: m[1] + used[m[2]], body)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.S)
    body = re.sub(r' style="([^"]*)"', lambda m: _attributes(m[1]), body)
    label = escape(words)
    return Markup(f'<svg {box[0]} role="img" aria-label="{label}">{body.strip()}')


def _attributes(style: str) -> str:
    """Return a style as attributes of SVG: the page's policy allows no style attribute."""
    out = ""
    for declaration in filter(None, style.split(";")):
        key, value = (part.strip() for part in declaration.split(":", 1))
        if key == "font":  # of older versions of matplotlib; the family is that of the page
            key, value = "font-size", value.split("px")[0].split()[-1] + "px"
        if key != "font-family":
            out += f' {key}="{value}"'
    return out


def _references(body: str) -> list[str]:
    return sorted(set(re.findall(r"(?:url\(#|href=\"#)([^)\"]*)", body)))


def _renamed(name: str, used: dict[str, str]) -> str:
    return f' id="{used[name]}"' if name in used else ""


def _short(words: str) -> str:
    return f"p{crc32(words.encode()):08x}"


def _key(line: Series) -> Key:
    color, dash, marker = _look(line)
    pattern = "" if dash == "-" else f' stroke-dasharray="{" ".join(str(2 * d) for d in dash[1])}"'
    own = _COLORS[color]
    drawn = (
        '<svg viewBox="0 0 34 12" width="34" height="12" aria-hidden="true">'
        f'<path d="M0 6H34" fill="none" stroke="{own}" stroke-width="2"{pattern}/>'
        f'<path d="{_SHAPES[marker]}" fill="{own}"/></svg>'
    )
    return Key(line.label, Markup(drawn))


def _words(line: Series) -> str:
    """Describe a line's points as text: all of up to 8, else the first, middle and last."""
    points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if not math.isnan(y)]
    if not points:
        return "no values"
    if len(points) > 8:
        points = [points[0], points[len(points) // 2], points[-1]]
    return ", ".join(f"{y:.3g} at {x:g}" for x, y in points)
