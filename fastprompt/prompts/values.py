"""Interface between modules with trainable prompts and the towers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class PromptValues:
    """Inputs of the prompts to the towers.

    Attributes:
        context: context tokens, ``[M, text_width]``; ``[C, M, text_width]`` for a context per
            class, ``[K, M, text_width]`` for a mixture.
        deep: replacements of the context tokens before layers 1, 2, ... of the text encoder,
            ``[depth - 1, M, text_width]``.
        visual: visual prompts, one set for each image layer that has prompts,
            ``[layers, V, image_width]``.
    """

    context: Tensor
    deep: Tensor | None = None
    visual: Tensor | None = None


class Prompts(Protocol):
    """Interface of modules with trainable prompts.

    Optional attributes: ``refiners`` (for the image tower) and ``text_refiners``, lists of modules,
    and ``head``, which computes logits from K prompts' features, such as `MixtureHead`.
    """

    def values(self) -> PromptValues: ...
