"""Pixels to logits, as an ordinary module that any attack library can take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from .clip import FrozenCLIP


class CLIPClassifier(nn.Module):
    """``logit_scale * cos(f(x), t_c)``: pixels ``[B, 3, H, W]`` in [0, 1] to logits ``[B, C]``.

    Args:
        clip: the frozen model, shared: moving the classifier moves it, too.
        text_features: one L2-normalised text feature a class, ``[C, D]``.
        classnames: the C names.
    """

    text_features: Tensor

    def __init__(self, clip: FrozenCLIP, text_features: Tensor, classnames: Sequence[str]) -> None:
        super().__init__()
        if text_features.ndim != 2 or len(text_features) != len(classnames):
            raise ValueError(
                f"text_features must be [{len(classnames)}, D], one row a class, "
                f"got {list(text_features.shape)}"
            )
        self.clip = clip
        self.classnames = list(classnames)
        self.register_buffer("text_features", text_features.detach())

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, C]``, differentiable in the pixels."""
        return self.logits(self.clip.encode_image(images))

    def logits(self, image_features: Tensor) -> Tensor:
        """Logits ``[B, C]`` of raw image features ``[B, D]``."""
        return cosine_logits(self.clip, image_features, self.text_features)


def cosine_logits(clip: FrozenCLIP, image_features: Tensor, text_features: Tensor) -> Tensor:
    """``logit_scale * normalise(image_features) @ text_features.T`` (+ the model's bias).

    Args:
        image_features: raw, ``[B, D]``.
        text_features: L2-normalised, ``[C, D]``.
    """
    image = F.normalize(image_features, dim=-1)
    logits = clip.logit_scale * image @ text_features.T
    return logits if clip.logit_bias is None else logits + clip.logit_bias
