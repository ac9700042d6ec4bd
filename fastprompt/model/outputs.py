"""Values that the methods of `PromptedCLIP` return and take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..prompts.values import PromptValues
from ..towers.image_prompts import ImagePrompts

Visual = Tensor | ImagePrompts | None


@dataclass(frozen=True)
class Prepared:
    """Values that depend on the prompts but not on the images.

    Attributes:
        values: the prompts' inputs to the towers.
        text: L2-normalized class features ``[C, D]``, or with a head its unnormalized text features
            ``[K, C, D]``; both with a graph to the prompts.
        visual: argument ``prompts`` of the image tower: for an `ImageTower` with prompts or
            refiners the result of `ImageTower.share`, else ``values.visual``.
        head: the tensors that the head's ``prepare`` returned for ``text``, without a graph.
    """

    values: PromptValues
    text: Tensor
    visual: Visual
    head: tuple[Tensor, ...] = ()

    def without_graph(self) -> Prepared:
        """Return the same values without a graph."""
        given, visual = self.values, self.visual
        fields = (given.context, given.deep, given.visual)
        values = PromptValues(*(t if t is None else t.detach() for t in fields))  # type: ignore[arg-type]
        if visual is not None:
            visual = visual.detached() if isinstance(visual, ImagePrompts) else visual.detach()
        return Prepared(values, self.text.detach(), visual, self.head)

    def detached(self) -> tuple[Any, ...]:
        """Return the fixed inputs of an attack, without a graph: text, visual prompts, head."""
        fixed = self.without_graph()
        return fixed.text, fixed.visual, *fixed.head


@dataclass(frozen=True)
class Seen:
    """Outputs of the model for a batch of images.

    Attributes:
        logits: ``[B, C]``.
        features: unnormalized image features ``[B, D]``.
        layers: each image block's output ``[B, N + V, width]``; empty unless requested.
    """

    logits: Tensor
    features: Tensor
    layers: list[Tensor]
