"""What prompts put into the towers, and what a module that learns prompts must have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class PromptValues:
    """What prompts put into the towers.

    Attributes:
        context: context tokens, ``[M, text_width]``; ``[C, M, text_width]`` of one context a class,
            ``[K, M, text_width]`` of a mixture.
        deep: what replaces them before layers 1, 2, ... of the text tower,
            ``[depth - 1, M, text_width]``.
        visual: visual prompts, one set for each of the image layers that have some,
            ``[layers, V, image_width]``.
    """

    context: Tensor
    deep: Tensor | None = None
    visual: Tensor | None = None


class Prompts(Protocol):
    """A module that learns prompts.

    It may have ``refiners`` (of the image tower) and ``text_refiners``, lists of modules, and a
    ``head`` that makes logits of K prompts' features, such as `MixtureHead`.
    """

    def values(self) -> PromptValues: ...
