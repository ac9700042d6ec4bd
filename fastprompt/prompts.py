"""What learns: text context, deep multi-modal prompts, mixtures of prompts, token refiners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._checks import check_choice, check_count
from ._seeds import stream
from .description import visual_prompts_fit
from .heads import MixtureHead, PromptRouter
from .kernels.mixture_logits import Mix

if TYPE_CHECKING:
    from .clip import FrozenCLIP


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


def _normal(generator: torch.Generator, *shape: int, std: float = 0.02) -> Tensor:
    return std * torch.randn(*shape, generator=generator)


class TextContext(nn.Module):
    """Context tokens that stand between the start token and the class name.

    Args:
        n_ctx: M, the number of tokens.
        width: the text tower's width.
        classes: C, for one context a class; None is one context for all.
        seed: of the start values, N(0, 0.02) (CoOp, Zhou et al., IJCV 2022).
        start: start values of the first tokens instead, ``[at most M, width]``, such as the
            embeddings of words.
    """

    def __init__(
        self,
        n_ctx: int,
        width: int,
        *,
        classes: int | None = None,
        seed: int = 0,
        start: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_count(n_ctx, "n_ctx")
        own = () if classes is None else (check_count(classes, "classes"),)
        tokens = _normal(torch.Generator().manual_seed(seed), *own, n_ctx, width)
        if start is not None:
            tokens[..., : len(start), :] = start.detach()
        self.tokens = nn.Parameter(tokens)

    def forward(self) -> Tensor:
        """The tokens, ``[M, width]`` or ``[C, M, width]``."""
        return self.tokens

    def values(self) -> PromptValues:
        """What goes into the towers."""
        return PromptValues(self.tokens)


class PromptMixture(nn.Module):
    """K text prompts and the router that weights them for each image (AMPT).

    Every prompt but the first starts with noise on its words too: prompts that start alike would
    get the same gradients, and stay alike.

    Args:
        n_prompts: K.
        n_ctx: M, tokens of each prompt.
        width: the text tower's width.
        feature_width: D, of the features.
        hidden: the router's inner width; by default D / 4.
        temperature, mix: of the mixture, see `MixtureHead`.
        seed: of the start values: N(0, 0.02), the router's as `nn.Linear` has them.
        start: start values of each prompt's first tokens, ``[at most M, width]``.
    """

    def __init__(
        self,
        n_prompts: int,
        n_ctx: int,
        width: int,
        feature_width: int,
        *,
        hidden: int | None = None,
        temperature: float = 1.0,
        mix: Mix = "normalised",
        seed: int = 0,
        start: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_count(n_prompts, "n_prompts")
        check_count(n_ctx, "n_ctx")
        tokens = _normal(torch.Generator().manual_seed(seed), n_prompts, n_ctx, width)
        if start is not None:
            tokens[0, : len(start)] = 0
            tokens[:, : len(start)] += start.detach().to(tokens)
        self.tokens = nn.Parameter(tokens)
        own = stream(seed, "router", 0)
        router = PromptRouter(feature_width, n_prompts, hidden=hidden, seed=own)
        self.head = MixtureHead(router, temperature=temperature, mix=mix)

    def values(self) -> PromptValues:
        """What goes into the towers."""
        return PromptValues(self.tokens)


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
        tokens = _normal(generator, depth, n_ctx, text_width)
        if start is not None:
            tokens[0, : len(start)] = start.detach()
        self.tokens = nn.Parameter(tokens)
        self.map_weight, self.map_bias = (
            nn.Parameter(_uniform(generator, text_width, depth, *shape))
            for shape in ((image_width, text_width), (1, image_width))
        )
        self.refiners = _refiners(refiners, image_width, seed, "image", refiner_start)
        self.text_refiners = _refiners(text_refiners, text_width, seed, "text", refiner_start)

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
        if why := deep_prompts_fit(clip):
            raise ValueError(f"{clip.name} takes no deep prompts: {why}")
        parts = clip.text_parts
        assert not isinstance(parts, str)
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


def _uniform(generator: torch.Generator, fan_in: int, *shape: int) -> Tensor:
    """`nn.Linear`'s start values: uniform in ``+-1 / sqrt(fan_in)``."""
    return (2 * torch.rand(*shape, generator=generator) - 1) * fan_in**-0.5


RefinerStart = Literal["identity", "linear"]


class TokenRefiner(nn.Module):
    """``x + W2 ReLU(W1 x)``: purifies the tokens in front of a block (NAP's neural augmentor).

    Args:
        width: d, of a token; the hidden layer has 2 d.
        start: ``"identity"`` starts with ``W2`` at zero; ``"linear"`` starts both layers as
            `nn.Linear` does, as the authors have it.
        seed: of the start values.
    """

    def __init__(self, width: int, *, start: RefinerStart = "identity", seed: int = 0) -> None:
        super().__init__()
        check_choice(start, "start", get_args(RefinerStart))
        generator = torch.Generator().manual_seed(seed)
        self.first, self.second = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        with torch.no_grad():
            for layer in (self.first, self.second):
                layer.weight.copy_(_uniform(generator, layer.in_features, *layer.weight.shape))
                layer.bias.copy_(_uniform(generator, layer.in_features, *layer.bias.shape))
            if start == "identity":
                self.second.weight.zero_(), self.second.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[..., width]`` to the same, computed in the tokens' precision."""
        first, second = (
            (m.weight.to(x.dtype), m.bias.to(x.dtype)) for m in (self.first, self.second)
        )
        return x + F.linear(F.linear(x, *first).relu(), *second)


def _refiners(
    count: int, width: int, seed: int, part: str, start: RefinerStart
) -> nn.ModuleList | None:
    if not count:
        return None
    seeds = (stream(seed, part, i) for i in range(count))
    return nn.ModuleList(TokenRefiner(width, start=start, seed=own) for own in seeds)


def deep_prompts_fit(clip: FrozenCLIP) -> str:
    """Why prompts can't be put into the layers of both towers; empty if they can."""
    parts = clip.text_parts
    if isinstance(parts, str):
        return parts
    return visual_prompts_fit(clip.model) or (
        "" if parts.layers else "no prompts fit its text layers"
    )
