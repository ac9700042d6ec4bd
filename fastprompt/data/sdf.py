"""Signed distance functions of the built-in shapes, and their surface patterns.

Coordinates are in units of the shape's radius with y upward; distances are negative inside a shape.
The formulas combine half-planes, discs and boxes by minimum (union) and maximum (intersection).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

SHAPES = (
    "circle",
    "square",
    "triangle",
    "diamond",
    "star",
    "cross",
    "ring",
    "heart",
    "moon",
    "arrow",
)
PATTERNS = ("plain", "striped", "dotted", "checkered", "speckled", "shaded")

# the period of the patterns, in pixels of a 48-pixel image
_PERIOD = 6.0


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 0.9


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.78


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(-y, 0.5 * y + 0.866 * x.abs()) - 0.5


def _diamond(x: Tensor, y: Tensor) -> Tensor:
    # the line |x| / 0.58 + |y| = 1, divided by the length of its normal
    return (x.abs() / 0.58 + y.abs() - 1.0) / math.hypot(1 / 0.58, 1.0)


def _star(x: Tensor, y: Tensor) -> Tensor:
    sector = 2 * math.pi / 5
    angle = torch.remainder(torch.atan2(x, y) + sector / 2, sector) - sector / 2
    radius = torch.hypot(x, y)
    along, across = radius * angle.cos(), radius * angle.sin().abs()
    # the edge from the tip (1, 0) to the notch between two tips
    notch = (0.45 * math.cos(sector / 2), 0.45 * math.sin(sector / 2))
    length = math.hypot(1.0 - notch[0], notch[1])
    return ((along - 1.0) * notch[1] + across * (1.0 - notch[0])) / length


def _cross(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.abs(), y.abs()
    upright = torch.maximum(x - 0.3, y - 0.95)
    level = torch.maximum(x - 0.95, y - 0.3)
    return torch.minimum(upright, level)


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.7).abs() - 0.22


def _heart(x: Tensor, y: Tensor) -> Tensor:
    x = x.abs()
    lobe = torch.hypot(x - 0.42, y - 0.28) - 0.48
    # the lower wedge's edge is the tangent from the tip (0, -0.95) to the lobe
    wedge = torch.maximum(0.760 * x - 0.649 * (y + 0.95), y + 0.03)
    middle = torch.maximum(x - 0.42, y.abs() - 0.28)
    return torch.minimum(torch.minimum(lobe, wedge), middle)


def _moon(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(torch.hypot(x, y) - 0.95, 0.75 - torch.hypot(x - 0.42, y - 0.12))


def _arrow(x: Tensor, y: Tensor) -> Tensor:
    y = y.abs()
    shaft = torch.maximum((x + 0.42).abs() - 0.53, y - 0.24)
    head = torch.maximum(0.05 - x, 0.640 * (x - 0.95) + 0.768 * y)
    return torch.minimum(shaft, head)


_DISTANCE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "diamond": _diamond,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "heart": _heart,
    "moon": _moon,
    "arrow": _arrow,
}


def signed_distance(shape: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the signed distance to the outline of ``shape[i]`` at each point, in radii.

    Args:
        shape: index into ``SHAPES``, ``[N]``.
        x, y: coordinates in units of the radius, ``[N, H, W]``.
    """
    out = torch.empty_like(x)
    for index, name in enumerate(SHAPES):
        rows = (shape == index).nonzero()[:, 0]
        if len(rows):
            out[rows] = _DISTANCE[name](x[rows], y[rows])
    return out


def _soft_step(value: Tensor) -> Tensor:
    return (0.5 + 2.0 * value).clamp(0.0, 1.0)


def pattern_mask(pattern: Tensor, x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
    """Return the weight of the second tone at each point, in [0, 1].

    Args:
        pattern: index into ``PATTERNS``, ``[N]``.
        x, y: coordinates in pixels of a 48-pixel image from the object's center, ``[N, H, W]``.
        noise: uniform in [0, 1), ``[N, H, W]``; used only by the speckled pattern.
    """
    turn = 2 * math.pi / _PERIOD
    out = torch.zeros_like(x)
    for index, name in enumerate(PATTERNS):
        rows = (pattern == index).nonzero()[:, 0]
        if name == "plain" or not len(rows):
            continue
        u, v = x[rows], y[rows]
        if name == "striped":
            mask = _soft_step((turn * u).sin())
        elif name == "dotted":
            mask = _soft_step((turn * u).cos() + (turn * v).cos() - 0.7)
        elif name == "checkered":
            half = turn / 1.5
            mask = _soft_step((half * u).sin() * (half * v).sin() * 2.0)
        elif name == "speckled":
            mask = (noise[rows] < 0.3).to(x.dtype)
        else:  # shaded: a gradient between the tones across the object
            mask = (0.5 + v / 20.0).clamp(0.0, 1.0)
        out[rows] = mask
    return out
