"""Coupled text and visual prompts in the layers of both encoders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._utils.checks import check_count
from ..clip.frozen import FrozenCLIP
from ..clip.parts import image_width
from .init import normal, uniform
from .refiners import RefinerStart, make_refiners
from .values import PromptValues


class DeepPrompts(nn.Module):
    """Coupled text and visual prompts in the first ``depth`` layers of both encoders.

    In each layer, a linear map computes the visual prompts from the text prompts (MaPLe, Khattak et
    al., CVPR 2023, section 3.2).

    Args:
        depth: number of layers with separate prompts, in both encoders.
        n_ctx: number of tokens per layer, M.
        text_width, image_width: widths of the encoders.
        refiners: number of `TokenRefiner` modules for the image tower, placed before its second
            and following blocks; 0 for none.
        text_refiners: the same for the text tower, which takes one for each block but the first.
        refiner_start: initial values of the refiners, see `TokenRefiner`.
        seed: seed of the initial values: N(0, 0.02); the linear maps are those of `nn.Linear`.
        start: initial values of the first layer's first tokens, ``[at most M, text_width]``.
    """

    def __init__(
        self,
        depth: int,
        n_ctx: int,
        text_width: int,
        image_width: int,
        *,
        refiners: int = 0,
        text_refiners: int = 0,
        refiner_start: RefinerStart = "identity",
        seed: int = 0,
        start: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_count(depth, "depth")
        check_count(n_ctx, "n_ctx")
        generator = torch.Generator().manual_seed(seed)
        tokens = normal(generator, depth, n_ctx, text_width)
        if start is not None:
            tokens[0, : len(start)] = start.detach()
        self.tokens = nn.Parameter(tokens)
        self.map_weight, self.map_bias = (
            nn.Parameter(uniform(generator, text_width, depth, *shape))
            for shape in ((image_width, text_width), (1, image_width))
        )
        self.refiners = make_refiners(refiners, image_width, seed, "image", refiner_start)
        self.text_refiners = make_refiners(text_refiners, text_width, seed, "text", refiner_start)

    @classmethod
    def for_clip(
        cls,
        clip: FrozenCLIP,
        n_ctx: int,
        *,
        depth: int | None = None,
        refiners: bool = False,
        text_refiners: bool = False,
        refiner_start: RefinerStart = "identity",
        seed: int = 0,
        start: Tensor | None = None,
    ) -> DeepPrompts:
        """Make prompts for a model, on its device; ``depth`` is by default the largest possible.

        Raises:
            ValueError: an encoder does not support such prompts (the message says why) or has fewer
                layers than ``depth``.
        """
        if why := why_no_deep_prompts(clip):
            raise ValueError(f"clip: {clip.name} does not support deep prompts: {why}")
        parts = clip.text_parts
        visual: Any = clip.model.visual
        layers = len(visual.transformer.resblocks)
        deepest = min(parts.layers, layers)
        if depth is None:
            depth = deepest
        if not 1 <= depth <= deepest:
            raise ValueError(
                f"depth must be in 1..{deepest} for {clip.name}, whose encoders have "
                f"{parts.layers} (text) and {layers} (image) layers for prompts, got {depth}"
            )
        prompts = cls(
            depth,
            n_ctx,
            parts.width,
            image_width(clip.model),
            refiners=depth - 1 if refiners else 0,  # before the blocks that receive deep prompts
            text_refiners=parts.layers - 1 if text_refiners else 0,
            refiner_start=refiner_start,
            seed=seed,
            start=start,
        )
        return prompts.to(clip.device)

    def visual(self) -> Tensor:
        """Compute the visual prompts, ``[depth, M, image_width]``."""
        return torch.baddbmm(self.map_bias, self.tokens, self.map_weight.transpose(1, 2))

    def values(self) -> PromptValues:
        """Return the inputs to the towers."""
        return PromptValues(self.tokens[0], self.tokens[1:], self.visual())


def why_no_deep_prompts(clip: FrozenCLIP) -> str:
    """Return why the model does not support deep prompts; empty if it does."""
    if reason := clip.why_no_text_prompts() or clip.why_no_visual_prompts():
        return reason
    return "" if clip.text_parts.layers else "its text layers accept no prompts"
