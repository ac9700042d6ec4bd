"""Pixels to logits, as an ordinary module that any attack library can take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._utils.checks import check_classnames, check_templates
from .._utils.dtypes import at_least_float32, own_precision
from ..clip.frozen import FrozenCLIP
from ..towers.engines import make_image_tower


class CLIPClassifier(nn.Module):
    """``logit_scale * cos(f(x), t_c)``: pixels ``[B, 3, H, W]`` in [0, 1] to logits ``[B, C]``.

    Args:
        clip: the frozen model, shared: moving the classifier moves it, too.
        text_features: one L2-normalized text feature a class, ``[C, D]``; with a ``head`` those
            that it takes, ``[K, C, D]``.
        classnames: the C names.
        engine: ``"fast"`` computes what the features need and no more; ``"reference"`` runs
            open_clip's own image tower. Equal up to rounding.
        precision: ``"fp64"``, ``"fp32"``, ``"bf16"`` or ``"fp16"`` in the image tower; by default
            the weights' own: a judge should not round. Logits are float32 at least.
        image_tower: to use in place of one that ``engine`` and ``precision`` make; they say then
            what it is.
        visual: its visual prompts, ``[layers, V, width]``.
        refiners: its token refiners.
        head: what makes logits of the features in place of the cosine, such as `MixtureHead`.
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
        head: Any = None,
    ) -> None:
        super().__init__()
        dimensions = 2 if head is None else 3
        if text_features.ndim != dimensions or text_features.shape[-2] != len(classnames):
            raise ValueError(
                f"text_features must be [{'' if head is None else 'K, '}{len(classnames)}, D], "
                "one row a class, "
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
        self.refiners, self.head = refiners, head
        self._prepare_head()
        self.register_load_state_dict_post_hook(_prepare_again)  # type: ignore[no-untyped-call]

    def _prepare_head(self) -> None:
        """What the head makes of the text features, once for all images."""
        prepared = () if self.head is None else self.head.prepare(self.text_features)
        self._prepared = [f"prepared{i}" for i in range(len(prepared))]
        for name, tensor in zip(self._prepared, prepared, strict=True):
            self.register_buffer(name, tensor, persistent=False)

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
        prepared = [getattr(self, name) for name in self._prepared]
        return class_logits(self.clip, image_features, self.text_features, self.head, *prepared)

    def in_precision(self, precision: str) -> CLIPClassifier:
        """The same classifier with its image tower in another precision; see ``precision``."""
        # features in float64 meet text features alike
        text = self.text_features.double() if precision == "fp64" else self.text_features
        return CLIPClassifier(
            self.clip,
            text,
            self.classnames,
            engine=self.engine,
            precision=precision,
            visual=self.visual,
            refiners=self.refiners,
            head=self.head,
        )

    def routing_weights(self, images: Tensor) -> Tensor:
        """How much of each of a mixture's K prompts an image gets, ``[B, K]``.

        Raises:
            ValueError: the classifier has no router.
        """
        if not hasattr(self.head, "weights"):
            raise ValueError("this classifier has no router: it is not of a mixture of prompts")
        return self.head.weights(F.normalize(self.encode_image(images), dim=-1))


def _prepare_again(classifier: CLIPClassifier, _: object) -> None:
    # the text features may be others now
    classifier._prepare_head()


def class_logits(
    clip: FrozenCLIP,
    image_features: Tensor,
    text_features: Tensor,
    head: Any = None,
    *prepared: Any,
) -> Tensor:
    """``logit_scale * normalize(image_features) @ text_features.T`` (+ the model's bias).

    With a head that one makes the logits instead.

    Args:
        image_features: raw, ``[B, D]``.
        text_features: L2-normalized ``[C, D]``; with a head what it takes.
        head: L2-normalized image features, text features, scale and ``prepared`` to logits.
        prepared: from the head's ``prepare``.
    """
    image = F.normalize(at_least_float32(image_features), dim=-1)
    if head is None:
        logits = clip.logit_scale * image @ text_features.T
    else:
        logits = head(image, text_features, clip.logit_scale.to(image.dtype), *prepared)
    return logits if clip.logit_bias is None else logits + clip.logit_bias


def zero_shot(
    clip: FrozenCLIP,
    classnames: Sequence[str],
    templates: Sequence[str],
    *,
    engine: str = "fast",
    precision: str | None = None,
) -> CLIPClassifier:
    """See `FrozenCLIP.zero_shot`."""
    names = check_classnames(classnames)
    forms = check_templates(templates)
    features = torch.stack([F.normalize(clip.encode_names(names, form), dim=-1) for form in forms])
    text = F.normalize(at_least_float32(features.mean(dim=0)), dim=-1)
    return CLIPClassifier(clip, text, names, engine=engine, precision=precision)
