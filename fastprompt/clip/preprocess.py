"""Preprocessing of pictures for a model, without the normalization."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import open_clip
from PIL import Image
from torch import Tensor

from .frozen import FrozenCLIP


@dataclass(frozen=True)
class Preprocess:
    """open_clip's transform for evaluation, without the normalization.

    Maps a PIL image to float32 pixels ``[C, H, W]`` in [0, 1]. They equal open_clip's bit for bit:
    ``(pixels - mean) / std`` is the result of open_clip's own transform of the model.

    Attributes:
        size: side of square images in pixels, or height and width.
        channels: 3 for RGB, 1 for gray.
        resize_mode, interpolation, fill_color: as in open_clip's ``PreprocessCfg``.
    """

    size: int | tuple[int, int]
    channels: int = 3
    resize_mode: str = "shortest"
    interpolation: str = "bicubic"
    fill_color: int = 0

    @classmethod
    def of(cls, clip: FrozenCLIP) -> Preprocess:
        """Return the preprocessing of a model."""
        return cls(clip.image_size, clip.channels, **clip.preprocess)

    @cached_property
    def _steps(self) -> Callable[[Image.Image], Tensor]:
        return open_clip.image_transform(
            self.size,
            is_train=False,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            resize_mode=self.resize_mode,
            interpolation=self.interpolation,
            fill_color=self.fill_color,
        )

    def __call__(self, image: Image.Image) -> Tensor:
        # exact: the normalization by mean 0 and standard deviation 1 changes no bit
        return self._steps(image.convert("L") if self.channels == 1 else image)[: self.channels]
