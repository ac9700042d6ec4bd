"""Values that the methods of `PromptedCLIP` return and take."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..prompts.values import PromptValues


@dataclass(frozen=True)
class Prepared:
    """Values that depend on the prompts but not on the images.

    Attributes:
        values: the prompts' inputs to the towers.
        text: L2-normalized class features ``[C, D]``, or with a head its unnormalized text features
            ``[K, C, D]``; both with a graph to the prompts.
        head: the tensors that the head's ``prepare`` returned for ``text``, without a graph.
    """

    values: PromptValues
    text: Tensor
    head: tuple[Tensor, ...] = ()

    def detached(self) -> tuple[Tensor | None, ...]:
        """Return the fixed inputs of an attack, without a graph: text, visual prompts, head."""
        visual = self.values.visual
        return self.text.detach(), None if visual is None else visual.detach(), *self.head


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
