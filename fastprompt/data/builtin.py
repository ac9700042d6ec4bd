"""The built-in data sets, rendered in other styles than the bundled CLIP's training images.

Each one corresponds to a data set of the papers: `shapes` to ImageNet (80 classes of color and
shape), `patterns` to DTD, `counts` to EuroSAT, and the three shifted variants of `shapes` to
ImageNet-Sketch (outlines), -R (other textures and palettes) and -A (crowded, low contrast).
"""

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from .dataset import ImageTensors
from .sdf import PATTERNS, SHAPES
from .shapes import COLORS, Rendering, Scenes, render
from .splits import Form

# increase this if any image changes, since it is part of the banks' cache keys
VERSION = 1
# the old names of renamed sets, kept in fingerprints because the images are unchanged
_MARKS = {"shapes-recolored": "shapes-recoloured"}

_SHIFTED = Rendering(
    hue_shift=(-0.03, 0.03),
    saturation=(0.5, 0.95),
    value=(0.65, 1.0),
    contrast=(0.45, 0.85),
    brightness=(-0.1, 0.15),
    background=(0.15, 0.85),
    tint=0.2,
    texture=(0.05, 0.3),
    blur=(0.3, 1.0),
    light=(0.0, 0.15),
    clutter=4,
    noise=0.025,
)
_MILDER = replace(_SHIFTED, contrast=(0.55, 0.9), blur=(0.2, 0.8))


@dataclass(frozen=True)
class World:
    """The definition of a built-in data set.

    Attributes:
        classnames: the class names.
        templates: zero-shot templates for the class names.
        style: the rendering style.
        sizes: images per class in train, val and test.
        seed: the seed from which all random draws derive.
    """

    classnames: tuple[str, ...]
    templates: tuple[str, ...]
    style: Rendering
    sizes: dict[str, int]
    seed: int


_PAIRS = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)
_A = ("a photo of a {}.", "a picture of a {}.", "a drawing of a {}.")
_SOME = ("a photo of {}.", "a picture of {}.", "a drawing of {}.")
_SHAPES = World(_PAIRS, _A, _MILDER, {"train": 40, "val": 10, "test": 25}, seed=101)

WORLDS = {
    "shapes": _SHAPES,
    "patterns": World(
        tuple(f"{p} shape" for p in PATTERNS),
        _A,
        _MILDER,
        {"train": 200, "val": 50, "test": 200},
        seed=102,
    ),
    "counts": World(
        ("one shape", "two shapes", "three shapes", "four shapes"),
        _SOME,
        replace(_SHIFTED, contrast=(0.3, 0.6), clutter=14),
        {"train": 200, "val": 50, "test": 300},
        seed=103,
    ),
    "shapes-outline": replace(_SHAPES, style=replace(_MILDER, outline=5.0, clutter=0), seed=104),
    "shapes-recolored": replace(
        _SHAPES,
        style=replace(
            _SHIFTED,
            hue_shift=(-0.04, 0.04),
            saturation=(0.35, 0.8),
            value=(0.8, 1.15),
            texture=(0.2, 0.45),
            turn=0.5,
        ),
        seed=105,
    ),
    "shapes-crowded": replace(
        _SHAPES, style=replace(_SHIFTED, contrast=(0.35, 0.6), clutter=12), seed=106
    ),
}


def _scenes(name: str, labels: Tensor, generator: torch.Generator) -> Scenes:
    """Return scenes of the given labels; all other attributes are random."""
    scenes = Scenes.random(len(labels), generator)
    if name == "patterns":
        one, large = torch.zeros_like(labels), torch.ones_like(labels)
        return replace(scenes, pattern=labels, count=one, size=large)
    if name == "counts":
        return replace(scenes, count=labels)
    pair = {"color": labels // len(SHAPES), "shape": labels % len(SHAPES)}
    # most images have one object, as in ImageNet; about 10 % have two
    few = (torch.rand(len(labels), generator=generator, dtype=torch.float32) < 0.1).long()
    return replace(scenes, **pair, count=few)


@cache
def draw_split(name: str, split: str, form: Form) -> ImageTensors:
    """Render the ``train``, ``val`` or ``test`` split of a built-in data set, in random order.

    Images that are not square are resized from square ones, which moves no object out of them.
    """
    side = form.size if isinstance(form.size, int) else max(form.size)
    world = WORLDS[name]
    classes = len(world.classnames)
    place = list(world.sizes).index(split)
    generator = torch.Generator().manual_seed(1000 * world.seed + place)
    labels = torch.arange(classes).repeat(world.sizes[split])
    labels = labels[torch.randperm(len(labels), generator=generator)]
    scenes = _scenes(name, labels, generator)
    images = render(scenes, world.style, size=side, seed=1000 * world.seed + 500 + place)
    mark = f"{_MARKS.get(name, name)}/{split}/{form}px/v{VERSION}"
    return ImageTensors(form.of_rendered(images), labels, mark)
