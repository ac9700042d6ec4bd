"""Text and visual prompts in the layers of both towers, coupled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._utils.checks import check_count
from ..clip.frozen import FrozenCLIP
from ..clip.parts import why_no_visual_prompts
from .init import normal, uniform
from .refiners import RefinerStart, make_refiners
from .values import PromptValues


class DeepPrompts(nn.Module):
    """Text and visual prompts in the first ``depth`` layers of both towers, coupled.

    The visual prompts are mapped from the text prompts by one linear layer in each layer (MaPLe,
    Khattak et al., CVPR 2023, section 3.2).

    Args:
        depth: layers with prompts of their own, of both towers.
        n_ctx: M, tokens in each of them.
        text_width, image_width: of the towers.
        refiners: `TokenRefiner` modules in the image tower, one for each block but the first: so
            many, 0 for none.
        text_refiners: likewise in the text tower.
        refiner_start: see `TokenRefiner`.
        seed: of the start values, N(0, 0.02); the maps start as `nn.Linear` does.
        start: start values of the first layer's first tokens, ``[at most M, text_width]``.
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
        """Prompts of a model's widths, on its device; by default in every layer of both towers.

        Raises:
            ValueError: one of the towers takes no such prompts (the reason is given), or has fewer
                layers than ``depth``.
        """
        if why := why_no_deep_prompts(clip):
            raise ValueError(f"clip: {clip.name} takes no deep prompts: {why}")
        parts = clip.text_parts
        visual: Any = clip.model.visual
        layers = len(visual.transformer.resblocks)
        deepest = min(parts.layers, layers)
        if depth is None:
            depth = deepest
        if not 1 <= depth <= deepest:
            raise ValueError(
                f"depth must be in 1..{deepest} for {clip.name}, whose towers have {parts.layers} "
                f"(text) and {layers} (image) layers for prompts, got {depth}"
            )
        prompts = cls(
            depth,
            n_ctx,
            parts.width,
            visual.conv1.out_channels,
            refiners=layers - 1 if refiners else 0,
            text_refiners=parts.layers - 1 if text_refiners else 0,
            refiner_start=refiner_start,
            seed=seed,
            start=start,
        )
        return prompts.to(clip.device)

    def visual(self) -> Tensor:
        """The visual prompts, ``[depth, M, image_width]``."""
        return torch.baddbmm(self.map_bias, self.tokens, self.map_weight.transpose(1, 2))

    def values(self) -> PromptValues:
        """What goes into the towers."""
        return PromptValues(self.tokens[0], self.tokens[1:], self.visual())


def why_no_deep_prompts(clip: FrozenCLIP) -> str:
    """Why prompts can't be put into the layers of both towers; empty if they can."""
    if reason := clip.why_no_text_prompts() or why_no_visual_prompts(clip.model):
        return reason
    return "" if clip.text_parts.layers else "no prompts fit its text layers"
