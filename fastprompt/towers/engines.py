"""The towers of an engine: ``"fast"``, or the plain ``"reference"`` with the same mathematics."""

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
    """The precision that the towers run in: the one asked for, or the engine's default.

    Raises:
        ValueError: an unknown engine or precision, one that the device lacks, or one that is not
            the weights' own for the reference engine.
    """
    if engine not in get_args(Engine):
        raise ValueError(f"engine must be 'fast' or 'reference', got {engine!r}")
    own = own_precision(clip.dtype)
    if engine == "reference":
        if precision not in (None, own):
            raise ValueError(
                f"precision must be {own!r} with engine='reference', which runs the model's own "
                f"modules in the weights' own precision, got {precision!r}"
            )
        return own
    if precision is None:
        return default_precision(clip.dtype, clip.device)
    check_precision(precision, clip.device)
    return precision


def _cast(clip: FrozenCLIP, engine: str, precision: str | None) -> torch.dtype | None:
    """What the towers are cast to; None leaves the weights as they are, and as they will be."""
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
    """The engine's text tower; ``options`` are those of `PromptedText`."""
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
    """The engine's image tower; an image tower of another kind runs as it is, without prompts.

    Raises:
        ValueError: prompts for an image tower that takes none (the reason is given).
    """
    dtype = _cast(clip, engine, precision)
    if not layers and why_no_visual_prompts(clip.model):
        return PlainImageTower(clip, dtype)
    if engine == "reference":
        return ReferenceImageTower(clip, layers)
    return ImageTower(clip, layers, dtype=dtype)


class PlainImageTower(Tower):
    """An image tower that takes no prompts, whatever its kind: ResNet, ConvNeXt, timm's."""

    visual: nn.Module

    def __init__(self, clip: FrozenCLIP, dtype: torch.dtype | None = None) -> None:
        super().__init__(clip)
        self._cast = dtype

    def derive(self) -> None:
        """A copy in another precision, if one was asked for."""
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
        """Un-normalized image features ``[B, D]`` of pixels ``[B, 3, S, S]`` in [0, 1].

        Raises:
            ValueError: prompts, refiners or layers are asked for.
        """
        self.refresh()
        self.check(prompts, refiners, keep_layers=keep_layers)
        self.clip.check_pixels(images)
        pixels = (images - self.clip.mean) / self.clip.std
        with plain_attention():
            return self.visual(pixels.to(next(self.visual.parameters()).dtype))

    def check(self, prompts: object, refiners: object, *, keep_layers: bool = False) -> None:
        """Raise what `forward` would of prompts and refiners."""
        if prompts is not None or refiners is not None or keep_layers:
            reason = why_no_visual_prompts(self.clip.model)
            raise ValueError(
                f"clip: {self.clip.name} takes no visual prompts or refiners: {reason}"
            )
