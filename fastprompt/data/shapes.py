"""Rendering of the built-in images: scenes of colored, patterned shapes, drawn from a seed.

`Scenes` describes the content of each image, `Rendering` the style. The bundled CLIP was trained
only on the style ``PRETRAINING``; the downstream data sets (`fastprompt.data.builtin`) render the
same kind of scenes in other styles.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .sdf import PATTERNS, SHAPES, pattern_mask, signed_distance

COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
COUNTS = ("one", "two", "three", "four")
SIZES = ("small", "large")

# hue (in turns), saturation and value of each color in the pre-training style
_HUE = torch.tensor([0.0, 0.075, 0.155, 0.34, 0.5, 0.63, 0.76, 0.92], dtype=torch.float32)
_SATURATION = torch.tensor([0.95, 0.95, 0.95, 0.9, 0.85, 0.9, 0.8, 0.5], dtype=torch.float32)
_VALUE = torch.tensor([0.85, 0.95, 0.95, 0.7, 0.9, 0.85, 0.7, 1.0], dtype=torch.float32)
_CHUNK = 128  # images rendered at once; their float planes fit in the cache


@dataclass(frozen=True)
class Scenes:
    """The content of each image: indices into the tuples above, int64 ``[N]`` each."""

    shape: Tensor
    color: Tensor
    pattern: Tensor
    count: Tensor  # 0 for one, ... 3 for four
    size: Tensor

    def __len__(self) -> int:
        return len(self.shape)

    def __getitem__(self, rows: slice | Tensor) -> "Scenes":
        return Scenes(
            self.shape[rows],
            self.color[rows],
            self.pattern[rows],
            self.count[rows],
            self.size[rows],
        )

    @staticmethod
    def random(n: int, generator: torch.Generator) -> "Scenes":
        """Draw ``n`` scenes with uniform, independent attributes."""

        def draw(choices: tuple[str, ...]) -> Tensor:
            return torch.randint(len(choices), (n,), generator=generator)

        return Scenes(draw(SHAPES), draw(COLORS), draw(PATTERNS), draw(COUNTS), draw(SIZES))


@dataclass(frozen=True)
class Rendering:
    """A rendering style. Ranges are (low, high); values are drawn uniformly for each image."""

    hue_shift: tuple[float, float] = (-0.012, 0.012)  # turns
    saturation: tuple[float, float] = (0.9, 1.05)  # factor of the color's saturation
    value: tuple[float, float] = (0.9, 1.05)
    contrast: tuple[float, float] = (0.8, 1.0)  # factor of the deviation from the image's mean
    brightness: tuple[float, float] = (-0.05, 0.05)
    background: tuple[float, float] = (0.05, 0.95)  # gray level
    tint: float = 0.12  # maximum deviation of the background from gray
    texture: tuple[float, float] = (0.02, 0.22)  # amplitude of the background's texture
    turn: float = 0.3  # maximum rotation of an object in radians, in both directions
    blur: tuple[float, float] = (0.0, 0.4)  # weight of a 5x5 binomial blur
    light: tuple[float, float] = (0.0, 0.0)  # amplitude of light stripes
    clutter: int = 0  # number of bars and blobs behind the objects
    noise: float = 0.015  # standard deviation of pixel noise
    outline: float = 0.0  # if positive, draw only outlines of this width, in pixels at 48
    pattern_contrast: tuple[float, float] = (0.75, 1.0)


PRETRAINING = Rendering()


def hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Convert hue (in turns), saturation and value, each ``[...]``, to RGB ``[..., 3]``."""
    sextant = torch.tensor([5.0, 3.0, 1.0], dtype=torch.float32)
    k = torch.remainder(sextant + 6.0 * hue[..., None], 6.0)
    wedge = torch.minimum(k, 4.0 - k).clamp(0.0, 1.0)
    return value[..., None] * (1.0 - saturation[..., None] * wedge)


class _Draw:
    """Draws uniform random numbers for a chunk of ``n`` images."""

    def __init__(self, n: int, generator: torch.Generator) -> None:
        self.n, self.generator = n, generator

    def __call__(self, low: float, high: float, *shape: int) -> Tensor:
        unit = torch.rand((self.n, *shape), generator=self.generator, dtype=torch.float32)
        return low + (high - low) * unit


def _blend(canvas: Tensor, color: Tensor, alpha: Tensor) -> Tensor:
    """Blend ``color`` over ``canvas`` ``[N, 3, H, W]`` with opacity ``alpha`` ``[N, H, W]``."""
    return torch.lerp(canvas, color, alpha[:, None])


def _background(draw: _Draw, size: int, style: Rendering) -> Tensor:
    gray = draw(*style.background, 1)
    base = gray + draw(-style.tint, style.tint, 3)
    cells = 4 + 3 * int(torch.randint(4, (1,), generator=draw.generator))
    coarse = F.interpolate(draw(-1, 1, 3, 4, 4), size=(size, size), mode="bilinear")
    fine = F.interpolate(draw(-1, 1, 1, cells, cells), size=(size, size), mode="bilinear")
    amplitude = draw(*style.texture, 1, 1, 1)
    return base[:, :, None, None] + amplitude * (fine + 0.4 * coarse)


def _clutter(canvas: Tensor, grid: tuple[Tensor, Tensor], draw: _Draw, style: Rendering) -> Tensor:
    x, y = grid
    half = canvas.shape[-1] / 2
    for _ in range(style.clutter):
        angle = draw(0, math.pi, 1, 1)
        dx, dy = x - draw(-1.1, 1.1, 1, 1), y - draw(-1.1, 1.1, 1, 1)
        along = dx * angle.cos() + dy * angle.sin()
        across = dy * angle.cos() - dx * angle.sin()
        length, width = draw(0.05, 0.5, 1, 1), draw(0.03, 0.12, 1, 1)
        distance = torch.maximum(along.abs() - length, across.abs() - width)
        strength = draw(0.0, 0.9, 1, 1)
        shade = hsv_to_rgb(draw(0, 1), draw(0, 0.45), draw(0.1, 0.95))
        alpha = (0.5 - distance * half).clamp(0, 1) * strength
        canvas = _blend(canvas, shade[:, :, None, None], alpha)
    return canvas


def _places(draw: _Draw, scenes: Scenes) -> tuple[Tensor, Tensor, Tensor]:
    """Return centers x, y ``[N, 4]`` and radii ``[N]`` of up to four disjoint objects."""
    many = scenes.count > 0
    large = scenes.size == 1
    radius = torch.where(
        many,
        torch.where(large, draw(0.38, 0.45), draw(0.28, 0.33)),
        torch.where(large, draw(0.55, 0.75), draw(0.30, 0.42)),
    )
    corner = torch.argsort(draw(0, 1, 4), dim=1)
    slack = (0.5 - radius).clamp(min=0.02)[:, None]
    x = (corner % 2).to(torch.float32) - 0.5 + draw(-1, 1, 4) * slack
    y = (corner // 2).to(torch.float32) - 0.5 + draw(-1, 1, 4) * slack
    room = (1.0 - radius).clamp(min=0.0)[:, None]
    alone = ~many[:, None]
    x = torch.where(alone, draw(-1, 1, 4) * room, x)
    y = torch.where(alone, draw(-1, 1, 4) * room, y)
    return x, y, radius


def _tones(draw: _Draw, scenes: Scenes, style: Rendering) -> tuple[Tensor, Tensor]:
    """Return the objects' color and their patterns' second tone, ``[N, 3, 1, 1]`` each."""
    hue = _HUE[scenes.color] + draw(*style.hue_shift)
    saturation = (_SATURATION[scenes.color] * draw(*style.saturation)).clamp(0, 1)
    value = (_VALUE[scenes.color] * draw(*style.value)).clamp(0, 1)
    color = hsv_to_rgb(hue, saturation, value)
    dark, light = color * 0.3, torch.lerp(color, torch.ones_like(color), 0.7)
    other = torch.where((draw(0, 1, 1) < 0.5), dark, light)
    second = torch.lerp(color, other, draw(*style.pattern_contrast, 1))
    return color[:, :, None, None], second[:, :, None, None]


def _objects(
    canvas: Tensor, grid: tuple[Tensor, Tensor], scenes: Scenes, draw: _Draw, style: Rendering
) -> Tensor:
    x, y, radius = _places(draw, scenes)
    color, second = _tones(draw, scenes, style)
    pixels = canvas.shape[-1] / 2  # per coordinate unit
    turn = draw(-style.turn, style.turn, 4)
    tilt = draw(-0.5, 0.5)
    speckle = F.interpolate(draw(0, 1, 1, 24, 24), size=canvas.shape[-2:], mode="nearest")[:, 0]
    for slot in range(4):
        rows = (scenes.count >= slot).nonzero()[:, 0]
        if not len(rows):
            break
        r = radius[rows, None, None]
        dx = (grid[0] - x[rows, slot, None, None]) / r
        dy = (grid[1] - y[rows, slot, None, None]) / r
        cos, sin = turn[rows, slot].cos()[:, None, None], turn[rows, slot].sin()[:, None, None]
        u, v = cos * dx + sin * dy, cos * dy - sin * dx
        distance = signed_distance(scenes.shape[rows], u, v) * r * pixels
        alpha = (0.5 - distance).clamp(0, 1)
        if style.outline:
            width = style.outline * pixels / 24
            alpha = torch.minimum(alpha, (width + distance).clamp(0, 1))
        # the pattern has a separate tilt; its coordinates are pixels of a 48-pixel image
        cos, sin = tilt[rows].cos()[:, None, None], tilt[rows].sin()[:, None, None]
        scale = r * 24
        mask = pattern_mask(
            scenes.pattern[rows],
            (cos * dx + sin * dy) * scale,
            (cos * dy - sin * dx) * scale,
            speckle[rows],
        )
        paint = torch.lerp(color[rows], second[rows], mask[:, None])
        canvas[rows] = _blend(canvas[rows], paint, alpha)
    return canvas


def _blur(canvas: Tensor, share: Tensor) -> Tensor:
    weights = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
    height, width = canvas.shape[-2:]
    padded = F.pad(canvas, (2, 2, 2, 2), mode="replicate")
    # sums of shifted views are several times faster here than a one-channel convolution
    rows = torch.zeros((), dtype=torch.float32)
    for i, weight in enumerate(weights):
        rows = rows + weight * padded[..., i : i + height, :]
    smooth = torch.zeros((), dtype=torch.float32)
    for i, weight in enumerate(weights):
        smooth = smooth + weight * rows[..., i : i + width]
    return torch.lerp(canvas, smooth, share)


def _light(canvas: Tensor, grid: tuple[Tensor, Tensor], draw: _Draw, style: Rendering) -> Tensor:
    if style.light[1] == 0:
        return canvas
    x, y = grid
    angle, phase = draw(0, math.pi, 1, 1), draw(0, 2 * math.pi, 1, 1)
    wave = torch.sin(draw(2.0, 7.0, 1, 1) * (x * angle.cos() + y * angle.sin()) + phase)
    return canvas + (draw(*style.light, 1, 1) * wave)[:, None]


def _chunk(scenes: Scenes, style: Rendering, size: int, generator: torch.Generator) -> Tensor:
    draw = _Draw(len(scenes), generator)
    axis = (torch.arange(size, dtype=torch.float32) + 0.5) / (size / 2) - 1.0
    grid = (axis[None, None, :], -axis[None, :, None])  # x to the right, y upward
    canvas = _background(draw, size, style)
    canvas = _clutter(canvas, grid, draw, style)
    canvas = _objects(canvas, grid, scenes, draw, style)
    canvas = _light(canvas, grid, draw, style)
    canvas = _blur(canvas, draw(*style.blur, 1, 1, 1))
    mean = canvas.mean(dim=(1, 2, 3), keepdim=True)
    canvas = mean + draw(*style.contrast, 1, 1, 1) * (canvas - mean)
    canvas = canvas + draw(*style.brightness, 1, 1, 1)
    noise = torch.randn(canvas.shape, generator=generator, dtype=torch.float32)
    canvas = canvas + style.noise * noise
    return (canvas.clamp(0, 1) * 255).round().to(torch.uint8)


def render(
    scenes: Scenes, style: Rendering = PRETRAINING, *, size: int = 48, seed: int = 0
) -> Tensor:
    """Render ``scenes`` as uint8 images ``[N, 3, size, size]``; the same for the same seed.

    Raises:
        ValueError: ``size`` is below 16 pixels, at which the shapes are indistinguishable.
    """
    if size < 16:
        raise ValueError(f"size must be at least 16 pixels, got {size}")
    generator = torch.Generator().manual_seed(seed)
    starts = range(0, len(scenes), _CHUNK)
    chunks = [_chunk(scenes[i : i + _CHUNK], style, size, generator) for i in starts]
    return torch.cat(chunks) if chunks else torch.empty(0, 3, size, size, dtype=torch.uint8)
