"""Pixels to logits, as an ordinary module that any attack library can take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from ._dtypes import at_least_float32, own_precision
from .towers.engines import make_image_tower

if TYPE_CHECKING:
    from .clip import FrozenCLIP


class CLIPClassifier(nn.Module):
    """``logit_scale * cos(f(x), t_c)``: pixels ``[B, 3, H, W]`` in [0, 1] to logits ``[B, C]``.

    Args:
        clip: the frozen model, shared: moving the classifier moves it, too.
        text_features: one L2-normalised text feature a class, ``[C, D]``.
        classnames: the C names.
        engine: ``"fast"`` computes what the features need and no more; ``"reference"`` runs
            open_clip's own image tower. Equal up to rounding.
        precision: ``"fp64"``, ``"fp32"``, ``"bf16"`` or ``"fp16"`` in the image tower; by default
            the weights' own: a judge should not round. Logits are float32 at least.
        image_tower: to use in place of one that ``engine`` and ``precision`` make; they say then
            what it is.
        visual: its visual prompts, ``[layers, V, width]``.
        refiners: its token refiners.
    """

    text_features: Tensor
    visual: Tensor | None

    def __init__(
        self,
        clip: FrozenCLIP,
        text_features: Tensor,
        classnames: Sequence[str],
        *,
        engine: str = "fast",
        precision: str | None = None,
        image_tower: nn.Module | None = None,
        visual: Tensor | None = None,
        refiners: nn.ModuleList | None = None,
    ) -> None:
        super().__init__()
        if text_features.ndim != 2 or len(text_features) != len(classnames):
            raise ValueError(
                f"text_features must be [{len(classnames)}, D], one row a class, "
                f"got {list(text_features.shape)}"
            )
        self.clip = clip
        self.classnames = list(classnames)
        self.engine = engine
        self.precision = precision or own_precision(clip.dtype)
        self.image_tower = image_tower or make_image_tower(
            clip, engine=engine, precision=precision or self.precision
        )
        self.register_buffer("text_features", text_features.detach())
        self.register_buffer("visual", None if visual is None else visual.detach())
        self.refiners = refiners

    @property
    def has_visual_prompts(self) -> bool:
        """Whether the image features go through anything that was learned."""
        return self.visual is not None or self.refiners is not None

    def encode_image(self, images: Tensor) -> Tensor:
        """Raw image features ``[B, D]``, float32 at least."""
        return at_least_float32(self.image_tower(images, self.visual, self.refiners))

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, C]``, differentiable in the pixels."""
        return self.logits(self.encode_image(images))

    def logits(self, image_features: Tensor) -> Tensor:
        """Logits ``[B, C]`` of raw image features ``[B, D]``."""
        return cosine_logits(self.clip, image_features, self.text_features)


def cosine_logits(clip: FrozenCLIP, image_features: Tensor, text_features: Tensor) -> Tensor:
    """``logit_scale * normalise(image_features) @ text_features.T`` (+ the model's bias).

    Args:
        image_features: raw, ``[B, D]``.
        text_features: L2-normalised, ``[C, D]``.
    """
    image = F.normalize(at_least_float32(image_features), dim=-1)
    logits = clip.logit_scale * image @ text_features.T
    return logits if clip.logit_bias is None else logits + clip.logit_bias
