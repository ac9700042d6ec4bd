"""Comparison of the towers with the model's own forward pass.

A tower uses the modules that it knows. A model may compute more: a forward hook, a subclass of a
block with another forward, an overridden `encode_image`. Such a model is found by its features: a
random image and two texts go through the model's own `encode_image` and `encode_text` and through
each tower without prompts. A tower that differs by more than rounding is not used.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._utils.dtypes import at_least_float32
from .._utils.unpickling import first_line
from ..clip.frozen import FrozenCLIP
from .image import ImageTower
from .reference import ReferenceImageTower, ReferenceTextTower
from .text import TextTower

log = logging.getLogger(__name__)

# largest relative differences that rounding explains, by the dtype of the weights. Both engines
# agree to 1e-10 in float64 and to 1e-5 in float32; a changed model differs by far more
ROUNDING = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.bfloat16: 1e-1,
    torch.float16: 2e-2,
}
# on CUDA, torch rounds the inputs of a float32 convolution to TF32, 10 bits of mantissa
ROUNDING_TF32 = 2e-3

_NAMES = ["a", "the very long tail of a bird"]  # texts of different lengths
_ROOM = 16  # tokens that both of them fit into
_SLOWER = "the slower reference tower is used"
_WITHOUT = {
    "image": "encode_image itself is used, without visual prompts",
    "text": "text prompts are not supported",
}
ENGINES = ("fast", "reference")
_TOWERS: dict[tuple[str, str], Any] = {
    ("image", "fast"): ImageTower,
    ("image", "reference"): ReferenceImageTower,
    ("text", "fast"): TextTower,
    ("text", "reference"): ReferenceTextTower,
}


@dataclass(frozen=True)
class Gap:
    """Difference of a tower's features from the model's own.

    Attributes:
        distance: ``||tower - own|| / ||own||`` of the image or text where it is largest; infinite
            if the features could not be compared.
        rounding: the largest distance that rounding explains.
        error: why the features could not be compared.
    """

    distance: float
    rounding: float
    error: str = ""

    @property
    def exact(self) -> bool:
        """Whether the features are equal up to rounding."""
        return self.distance <= self.rounding

    def __str__(self) -> str:
        return self.error or (
            f"relative difference {self.distance:.1e}, of which rounding explains at most "
            f"{self.rounding:.0e}"
        )


def gap(clip: FrozenCLIP, encoder: str, engine: str) -> Gap:
    """Compare a tower with the model's own features; once, until the weights change.

    Args:
        clip: the frozen model; the structure of its encoder must support prompts.
        encoder: ``"image"`` or ``"text"``.
        engine: ``"fast"`` or ``"reference"``.
    """
    if encoder not in clip.gaps:
        found = clip.gaps[encoder] = _compare(clip, encoder)
        if not found["fast"].exact:
            log.warning(
                "%s: the fast %s tower does not reproduce the model's own encode_%s (%s): %s",
                *(clip.name, encoder, encoder, found["fast"]),
                _SLOWER if found["reference"].exact else _WITHOUT[encoder],
            )
    return clip.gaps[encoder][engine]


def exact_engine(clip: FrozenCLIP, encoder: str, engine: str) -> str:
    """Return the engine whose tower to use: ``engine``, or the next exact one; empty without one.

    Without an exact fast tower, the reference tower is used; but never the other way round.
    """
    engines = ENGINES if engine == "fast" else (engine,)
    return next((name for name in engines if gap(clip, encoder, name).exact), "")


def why_inexact(clip: FrozenCLIP, encoder: str) -> str:
    """Return how both towers differ from the model's own features; empty if one is exact."""
    if exact_engine(clip, encoder, "fast"):
        return ""
    gaps = [f"{engine} engine: {gap(clip, encoder, engine)}" for engine in ENGINES]
    return f"no engine reproduces the model's own encode_{encoder} ({'; '.join(gaps)})"


def _compare(clip: FrozenCLIP, encoder: str) -> dict[str, Gap]:
    """Compare the towers of both engines with the model's own features."""
    with _undisturbed(clip):
        own = _features(_own_features, clip, encoder)
        towers = {name: _features(_tower_features, clip, encoder, name) for name in ENGINES}
    return {name: _gap(clip, ours, own) for name, ours in towers.items()}


def image_error(clip: FrozenCLIP, tower: Callable[[Tensor], Tensor]) -> str:
    """Return the error that an image tower without prompts raises; empty if it runs."""
    with _undisturbed(clip):
        out = _features(tower, _image(clip))
    return out if isinstance(out, str) else ""


@contextmanager
def _undisturbed(clip: FrozenCLIP) -> Iterator[None]:
    """Compute without gradients; a model may draw random numbers, the caller's stay as they are."""
    devices = [clip.device] if clip.device.type == "cuda" else []
    # in this order: leaving the inference mode enables gradients
    with torch.random.fork_rng(devices), torch.inference_mode(False), torch.no_grad():
        yield


def _features(compute: Callable[..., Tensor], *arguments: Any) -> Tensor | str:
    """Compute features; of a model that raises an error, return the error."""
    try:
        return at_least_float32(compute(*arguments))
    except Exception as error:  # a changed model can raise any error
        return f"{type(error).__name__}: {first_line(error)}"


def _gap(clip: FrozenCLIP, ours: Tensor | str, own: Tensor | str) -> Gap:
    rounding = ROUNDING[clip.dtype]
    if clip.device.type == "cuda" and clip.dtype == torch.float32:
        rounding = ROUNDING_TF32
    if isinstance(own, str) or isinstance(ours, str):
        return Gap(math.inf, rounding, own if isinstance(own, str) else str(ours))
    if own.shape != ours.shape:
        shapes = f"features {list(ours.shape)} instead of {list(own.shape)}"
        return Gap(math.inf, rounding, shapes)
    return Gap(_distance(ours, own), rounding)


def same(clip: FrozenCLIP, ours: Tensor, own: Tensor) -> bool:
    """Return whether features are equal to the model's own up to rounding."""
    return _gap(clip, at_least_float32(ours), at_least_float32(own)).exact


def _distance(ours: Tensor, own: Tensor) -> float:
    """Return the largest norm-relative difference of a row; 0 for equal rows, also of zeros."""
    apart, norm = (ours - own).norm(dim=-1), own.norm(dim=-1)
    return float((apart / norm.clamp_min(torch.finfo(norm.dtype).tiny)).max())


def _image(clip: FrozenCLIP) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (1, *clip.pixel_shape)
    image = torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")
    return image.to(clip.device, torch.float64 if clip.dtype == torch.float64 else torch.float32)


def _texts(clip: FrozenCLIP) -> list[str]:
    return _NAMES if clip.context_length >= _ROOM else _NAMES[:1]


def _own_features(clip: FrozenCLIP, encoder: str) -> Tensor:
    if encoder == "image":
        return clip.encode_image(_image(clip))
    return clip.encode_text([f"{name}." for name in _texts(clip)])


def _tower_features(clip: FrozenCLIP, encoder: str, engine: str) -> Tensor:
    make = _TOWERS[encoder, engine]
    if encoder == "image":
        return make(clip)(_image(clip))
    tower = make(clip, _texts(clip), 0)  # no context tokens: plain texts
    return tower(torch.empty(tower.context_shape, dtype=clip.dtype, device=clip.device))
