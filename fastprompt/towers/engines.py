"""Towers of the ``"fast"`` and the plain ``"reference"`` engine, which are mathematically equal."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .._utils.attention import plain_attention
from .._utils.checks import check_choice
from .._utils.dtypes import (
    AUTO,
    PRECISIONS,
    auto_precision,
    check_precision,
    own_precision,
)
from ..clip.frozen import FrozenCLIP
from ..clip.parts import pooled, why_no_visual_prompts
from .base import Tower
from .cast import frozen_copy
from .compare import exact_engine, gap, image_error
from .image import ImageTower
from .reference import ReferenceImageTower, ReferenceTextTower
from .text import TextTower
from .text_base import PromptedText

Engine = Literal["fast", "reference"]
log = logging.getLogger(__name__)


def resolve_precision(clip: FrozenCLIP, engine: str, precision: str) -> str:
    """Return the precision of the towers: the requested one, or what ``"auto"`` gives.

    ``"auto"`` is ``"bf16"`` for the fast engine and float32 weights where the device multiplies
    bfloat16 natively, else the weights' own precision.

    Raises:
        ValueError: the engine or precision is unknown, the device does not support the precision,
            or the reference engine is used with another precision than that of the weights.
    """
    if engine not in get_args(Engine):
        raise ValueError(f"engine must be 'fast' or 'reference', got {engine!r}")
    own = own_precision(clip.dtype)
    if engine == "reference":
        if precision not in (AUTO, own):
            raise ValueError(
                f"precision must be 'auto' or {own!r} with engine='reference', which runs "
                f"open_clip's own modules in the precision of the weights, got {precision!r}"
            )
        return own
    check_choice(precision, "precision", (AUTO, *PRECISIONS))
    if precision == AUTO:
        return auto_precision(clip.dtype, clip.device)
    check_precision(precision, clip.device)
    return precision


def _cast(clip: FrozenCLIP, engine: str, precision: str) -> torch.dtype | None:
    """Return the dtype to cast to; None follows the dtype of the weights, even if it changes."""
    dtype = PRECISIONS[resolve_precision(clip, engine, precision)]
    return None if dtype == clip.dtype else dtype


def make_text_tower(
    clip: FrozenCLIP,
    classnames: Sequence[str],
    n_ctx: int,
    *,
    engine: str = "fast",
    precision: str = AUTO,
    class_chunk: int | None = None,
    **options: Any,
) -> PromptedText:
    """Make the engine's text tower; ``options`` are arguments of `PromptedText`.

    The reference tower takes the place of a fast tower that does not reproduce `encode_text`.

    Raises:
        ValueError: the text encoder does not support prompts, or no tower reproduces it (the
            message says why); or see `PromptedText`.
    """
    dtype = _cast(clip, engine, precision)
    if reason := clip.why_no_text_prompts():
        raise ValueError(f"clip: {clip.name} does not support text prompts: {reason}")
    used = exact_engine(clip, "text", engine)
    if not used:
        raise _inexact(clip, "text")
    if used == "reference":
        return ReferenceTextTower(clip, classnames, n_ctx, **options)
    options |= {"class_chunk": class_chunk, "dtype": dtype, "whole": None}
    return TextTower(clip, classnames, n_ctx, **options)


def make_image_tower(
    clip: FrozenCLIP,
    layers: Sequence[int] = (),
    *,
    engine: str = "fast",
    precision: str = AUTO,
) -> Tower:
    """Make the engine's image tower; without ``layers``, any image encoder is supported.

    The reference tower takes the place of a fast tower that does not reproduce `encode_image`;
    without ``layers``, the model's own forward pass takes the place of both. It runs in the
    precision of the weights if it fails in another one.

    Raises:
        ValueError: the image encoder does not support the requested prompts, or no tower reproduces
            it (the message says why).
    """
    dtype = _cast(clip, engine, precision)
    if layers and (reason := clip.why_no_visual_prompts()):
        raise ValueError(f"clip: {clip.name} does not support visual prompts: {reason}")
    used = "" if why_no_visual_prompts(clip.model) else exact_engine(clip, "image", engine)
    if used == "fast":
        return ImageTower(clip, layers, dtype=dtype)
    if used == "reference":
        return ReferenceImageTower(clip, layers)
    if layers:
        raise _inexact(clip, "image")
    tower = PlainImageTower(clip, dtype)
    if dtype is not None and (error := image_error(clip, tower)):
        log.warning(
            "%s: encode_image fails in %s (%s), it runs in %s",
            *(clip.name, dtype, error),
            clip.dtype,
        )
        return PlainImageTower(clip)
    return tower


def _inexact(clip: FrozenCLIP, encoder: str) -> ValueError:
    """Return the error about a reference tower that is inexact while the fast tower is exact."""
    return ValueError(
        f"engine must be 'fast' for {clip.name}: the reference {encoder} tower does not reproduce "
        f"encode_{encoder} ({gap(clip, encoder, 'reference')})"
    )


class PlainImageTower(Tower):
    """The model's own `encode_image`, for any image encoder; it takes no prompts.

    Hooks, overridden methods and further modules have their effect.

    Args:
        clip: the frozen model.
        dtype: dtype of a copy of the image encoder; by default that of the weights.
    """

    model: Any

    def __init__(self, clip: FrozenCLIP, dtype: torch.dtype | None = None) -> None:
        super().__init__(clip)
        self._cast = dtype

    def derive(self) -> None:
        """Copy the encoder in another precision, if one was requested."""
        model: Any = self.clip.model
        visual = frozen_copy(model.visual, self._cast)
        if visual is not model.visual:
            model = copy.copy(model)  # shares all modules except the image encoder
            model.__dict__["_modules"] = {**model._modules, "visual": visual}
        object.__setattr__(self, "model", model)

    def forward(
        self,
        images: Tensor,
        prompts: None = None,
        refiners: None = None,
        *,
        keep_layers: bool = False,
    ) -> Tensor:
        """Compute the model's image features ``[B, D]`` of pixels ``[B, C, H, W]`` in [0, 1].

        Raises:
            ValueError: prompts, refiners or layers are requested.
        """
        self.refresh()
        self.check(prompts, refiners, keep_layers=keep_layers)
        self.clip.check_pixels(images)
        pixels = (images - self.clip.mean) / self.clip.std
        with plain_attention():
            dtype = next(self.model.visual.parameters()).dtype
            return pooled(self.model.encode_image(pixels.to(dtype)))

    def check(self, prompts: object, refiners: object, *, keep_layers: bool = False) -> None:
        """Raise the errors of `forward` about prompts and refiners."""
        if prompts is not None or refiners is not None or keep_layers:
            reason = self.clip.why_no_visual_prompts()
            raise ValueError(
                f"clip: {self.clip.name} does not support visual prompts or refiners: {reason}"
            )
