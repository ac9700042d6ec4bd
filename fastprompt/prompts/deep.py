"""Coupled text and visual prompts in the layers of both encoders."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .._utils.checks import MOST_TOKENS, MOST_WIDTH, check_choice, check_count, check_seed
from ..clip.frozen import FrozenCLIP
from ..clip.parts import image_width
from .init import check_start, normal, uniform
from .refiners import RefinerStart, make_refiners
from .values import PromptValues

Coupling = Literal["text-to-image", "image-to-text"]
MapStart = Literal["independent", "copies"]


class DeepPrompts(nn.Module):
    """Coupled text and visual prompts in the first ``depth`` layers of both encoders.

    In each layer, a linear map computes the visual prompts from the text prompts (MaPLe, Khattak et
    al., CVPR 2023, section 3.2). With ``coupling="image-to-text"``, in all layers but the first the
    visual prompts are trainable, and the map computes the text prompts (FAP, Zhou et al., NeurIPS
    2024).

    Args:
        depth: number of layers with separate prompts, in both encoders.
        n_ctx: number of tokens per layer, M.
        text_width, image_width: widths of the encoders.
        refiners: number of `TokenRefiner` modules for the image tower, placed before its second
            and following blocks; 0 for none.
        text_refiners: the same for the text tower, which takes one for each block but the first.
        refiner_start: initial values of the refiners, see `TokenRefiner`.
        coupling: direction of the maps in all layers but the first.
        map_start: ``"independent"``, or ``"copies"``: the linear maps of the layers after the first
            start equal.
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
        coupling: Coupling = "text-to-image",
        map_start: MapStart = "independent",
        seed: int = 0,
        start: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_count(depth, "depth", most=MOST_TOKENS)
        check_count(n_ctx, "n_ctx", most=MOST_TOKENS)
        for name, width in (("text_width", text_width), ("image_width", image_width)):
            check_count(width, name, most=MOST_WIDTH)
        for name, number in (("refiners", refiners), ("text_refiners", text_refiners)):
            check_count(number, name, least=0, most=MOST_TOKENS)
        check_seed(seed)
        check_start(start, n_ctx, text_width)
        check_choice(coupling, "coupling", get_args(Coupling))
        self.depth = depth
        self.reversed = coupling == "image-to-text" and depth > 1
        check_choice(map_start, "map_start", get_args(MapStart))
        generator = torch.Generator().manual_seed(seed)
        mapped = 1 if self.reversed else depth  # layers with text tokens and maps to the image
        tokens = normal(generator, mapped, n_ctx, text_width)
        if start is not None:
            tokens[0, : len(start)] = start.detach()
        self.tokens = nn.Parameter(tokens)
        self.map_weight, self.map_bias = _maps(generator, mapped, text_width, image_width)
        if self.reversed:
            self.image_tokens = nn.Parameter(normal(generator, depth - 1, n_ctx, image_width))
            self.back_weight, self.back_bias = _maps(generator, depth - 1, image_width, text_width)
        if map_start == "copies":
            deeper = [self.map_weight[1:], self.map_bias[1:]]
            if self.reversed:
                deeper = [self.back_weight, self.back_bias]
            with torch.no_grad():
                for maps in deeper:
                    maps.copy_(maps[:1].clone())
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
        coupling: Coupling = "text-to-image",
        map_start: MapStart = "independent",
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
        check_count(n_ctx, "n_ctx", most=MOST_TOKENS)
        if depth is None:
            depth = deepest
        check_count(depth, "depth", least=-MOST_TOKENS)
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
            coupling=coupling,
            map_start=map_start,
            seed=seed,
            start=start,
        )
        return prompts.to(clip.device)

    def visual(self) -> Tensor:
        """Compute the visual prompts, ``[depth, M, image_width]``."""
        mapped = torch.baddbmm(self.map_bias, self.tokens, self.map_weight.transpose(1, 2))
        return torch.cat([mapped, self.image_tokens]) if self.reversed else mapped

    def values(self) -> PromptValues:
        """Return the inputs to the towers."""
        deep = self.tokens[1:]
        if self.reversed:
            back = self.back_weight.transpose(1, 2)
            deep = torch.baddbmm(self.back_bias, self.image_tokens, back)
        return PromptValues(self.tokens[0], deep, self.visual())


def _maps(generator: torch.Generator, layers: int, width: int, to: int) -> list[nn.Parameter]:
    """Return weights ``[layers, to, width]`` and biases ``[layers, 1, to]`` as in `nn.Linear`."""
    shapes = ((to, width), (1, to))
    return [nn.Parameter(uniform(generator, width, layers, *shape)) for shape in shapes]


def why_no_deep_prompts(clip: FrozenCLIP) -> str:
    """Return why the model does not support deep prompts; empty if it does."""
    if reason := clip.why_no_text_prompts() or clip.why_no_visual_prompts():
        return reason
    return "" if clip.text_parts.layers else "its text layers accept no prompts"
