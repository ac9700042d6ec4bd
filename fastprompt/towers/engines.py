"""Towers of the ``"fast"`` and the plain ``"reference"`` engine, which are mathematically equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .._utils.attention import plain_attention
from .._utils.dtypes import (
    PRECISIONS,
    check_precision,
    default_precision,
    own_precision,
)
from ..clip.frozen import FrozenCLIP
from ..clip.parts import why_no_visual_prompts
from .base import Tower
from .cast import frozen_copy
from .image import ImageTower
from .reference import ReferenceImageTower, ReferenceTextTower
from .text import TextTower
from .text_base import PromptedText

Engine = Literal["fast", "reference"]


def resolve_precision(clip: FrozenCLIP, engine: str, precision: str | None) -> str:
    """Return the precision of the towers: the requested one, or the engine's default.

    Raises:
        ValueError: the engine or precision is unknown, the device does not support the precision,
            or the reference engine is used with another precision than that of the weights.
    """
    if engine not in get_args(Engine):
        raise ValueError(f"engine must be 'fast' or 'reference', got {engine!r}")
    own = own_precision(clip.dtype)
    if engine == "reference":
        if precision not in (None, own):
            raise ValueError(
                f"precision must be {own!r} with engine='reference', which runs open_clip's own "
                f"modules in the precision of the weights, got {precision!r}"
            )
        return own
    if precision is None:
        return default_precision(clip.dtype, clip.device)
    check_precision(precision, clip.device)
    return precision


def _cast(clip: FrozenCLIP, engine: str, precision: str | None) -> torch.dtype | None:
    """Return the dtype to cast to; None follows the dtype of the weights, even if it changes."""
    dtype = PRECISIONS[resolve_precision(clip, engine, precision)]
    return None if dtype == clip.dtype else dtype


def make_text_tower(
    clip: FrozenCLIP,
    classnames: Sequence[str],
    n_ctx: int,
    *,
    engine: str = "fast",
    precision: str | None = None,
    class_chunk: int | None = None,
    **options: Any,
) -> PromptedText:
    """Make the engine's text tower; ``options`` are arguments of `PromptedText`."""
    dtype = _cast(clip, engine, precision)
    if engine == "reference":
        return ReferenceTextTower(clip, classnames, n_ctx, **options)
    return TextTower(clip, classnames, n_ctx, class_chunk=class_chunk, dtype=dtype, **options)


def make_image_tower(
    clip: FrozenCLIP,
    layers: Sequence[int] = (),
    *,
    engine: str = "fast",
    precision: str | None = None,
) -> Tower:
    """Make the engine's image tower; without ``layers``, any image encoder is supported.

    Raises:
        ValueError: the image encoder does not support the requested prompts (the message says why).
    """
    dtype = _cast(clip, engine, precision)
    if not layers and why_no_visual_prompts(clip.model):
        return PlainImageTower(clip, dtype)
    if engine == "reference":
        return ReferenceImageTower(clip, layers)
    return ImageTower(clip, layers, dtype=dtype)


class PlainImageTower(Tower):
    """Image tower without prompts, for any image encoder: ResNet, ConvNeXt, timm's."""

    visual: nn.Module

    def __init__(self, clip: FrozenCLIP, dtype: torch.dtype | None = None) -> None:
        super().__init__(clip)
        self._cast = dtype

    def derive(self) -> None:
        """Copy the encoder in another precision, if one was requested."""
        visual: Any = self.clip.model.visual
        object.__setattr__(self, "visual", frozen_copy(visual, self._cast))

    def forward(
        self,
        images: Tensor,
        prompts: None = None,
        refiners: None = None,
        *,
        keep_layers: bool = False,
    ) -> Tensor:
        """Compute unnormalized image features ``[B, D]`` of pixels ``[B, 3, S, S]`` in [0, 1].

        Raises:
            ValueError: prompts, refiners or layers are requested.
        """
        self.refresh()
        self.check(prompts, refiners, keep_layers=keep_layers)
        self.clip.check_pixels(images)
        pixels = (images - self.clip.mean) / self.clip.std
        with plain_attention():
            return self.visual(pixels.to(next(self.visual.parameters()).dtype))

    def check(self, prompts: object, refiners: object, *, keep_layers: bool = False) -> None:
        """Raise the errors of `forward` about prompts and refiners."""
        if prompts is not None or refiners is not None or keep_layers:
            reason = why_no_visual_prompts(self.clip.model)
            raise ValueError(
                f"clip: {self.clip.name} does not support visual prompts or refiners: {reason}"
            )
