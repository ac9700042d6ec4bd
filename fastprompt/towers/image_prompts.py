"""What prompts and refiners give the image tower, equal for all images: computed once per step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor

from ..prompts.refiners import TokenRefiner
from .blocks import OpenBlock
from .image_base import Refiners


class ImagePrompts(NamedTuple):
    """Visual prompts and refiners of `ImageTower`, in the dtype of its blocks.

    Attributes:
        tokens: the prompts of each layer that has some, ``[V, width]``.
        keys: for each of these layers, key and value ``[V, H, width / H]`` if its prompts need
            nothing else, since the next layer replaces them or none follows; else empty.
        refiners: cast weights of each `TokenRefiner`; empty if a refiner is another module.
    """

    tokens: tuple[Tensor, ...]
    keys: tuple[tuple[Tensor, ...], ...]
    refiners: tuple[tuple[Tensor, ...], ...]

    def detached(self) -> ImagePrompts:
        """Return the same values without a graph."""
        return ImagePrompts(
            tuple(t.detach() for t in self.tokens),
            tuple(tuple(t.detach() for t in pair) for pair in self.keys),
            tuple(tuple(t.detach() for t in weights) for weights in self.refiners),
        )


def refiner_weights(
    refiners: Refiners | None, dtype: torch.dtype
) -> tuple[tuple[Tensor, ...], ...]:
    """Cast the weights of refiners; empty if a module is of another kind.

    Other modules may compute in a precision of their own, and subclasses or hooks something else.
    """
    known = [each for each in refiners or () if _is_plain(each)]
    if len(known) < len(refiners or ()):
        return ()
    return tuple(each.weights(dtype) for each in known)


def _is_plain(refiner: object) -> TypeGuard[TokenRefiner]:
    """Return whether a call of ``refiner`` computes `refine` and nothing else."""
    if type(refiner) is not TokenRefiner or "forward" in vars(refiner):
        return False
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return not any(getattr(refiner, name) for name in hooks)


def keys_of(block: OpenBlock, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Compute key and value of tokens that enter a block."""
    return block.keys_values(block.norm(tokens))


def prompt_keys(
    blocks: Sequence[OpenBlock], layers: Sequence[int], tokens: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], ...]:
    """Compute the attribute ``keys`` of `ImagePrompts`; ``tokens`` enter the blocks ``layers``."""
    ends = {i - 1 for i in layers} | {len(blocks) - 1}
    return tuple(
        keys_of(blocks[i], x) if i in ends else () for i, x in zip(layers, tokens, strict=True)
    )
