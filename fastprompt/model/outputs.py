"""What `PromptedCLIP` takes and gives."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..prompts.values import PromptValues


@dataclass(frozen=True)
class Prepared:
    """Attributes:

    values: what the prompts put into the towers.
    text: L2-normalized class features ``[C, D]``, or a head's ``[K, C, D]``; both with a graph to
        the prompts.
    head: what the head made of them, without a graph.
    """

    values: PromptValues
    text: Tensor
    head: tuple[Tensor, ...] = ()

    def detached(self) -> tuple[Tensor | None, ...]:
        """What an attack holds fixed, without a graph: class features, visual prompts, ``head``."""
        visual = self.values.visual
        return self.text.detach(), None if visual is None else visual.detach(), *self.head


@dataclass(frozen=True)
class Seen:
    """What the model makes of images.

    Attributes:
        logits: ``[B, C]``.
        features: raw image features ``[B, D]``.
        layers: each image block's output ``[B, N + V, width]``, where it was asked for.
    """

    logits: Tensor
    features: Tensor
    layers: list[Tensor]
