"""Image features of open_clip's VisionTransformer with visual prompts and token refiners."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.attention import attend
from ..clip.frozen import FrozenCLIP
from ..prompts.refiners import refine
from .base import keep
from .blocks import OpenBlock, open_blocks
from .cast import frozen_copy
from .image_base import PromptedImage, Refiners
from .image_prompts import ImagePrompts, keys_of, prompt_keys, refiner_weights
from .patches import halves_of, patches, patches_bf16


class ImageTower(PromptedImage):
    """Fast image tower, which skips all computation that does not affect the features.

    Outputs of prompt tokens that the next layer replaces are not computed: these tokens only give
    keys and values, once for the whole batch. The last block computes only the pooled tokens.

    Args:
        clip, layers: see `PromptedImage`.
        dtype: dtype of the blocks; by default that of the weights. The patch embedding always has
            the precision of the weights: if pixels were rounded, attack steps would be lost.
    """

    visual: Any
    patch_weight: Tensor
    patch_bias: Tensor
    patch_halves: Tensor | None

    def __init__(
        self, clip: FrozenCLIP, layers: Sequence[int] = (), *, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(clip, layers)
        self._cast = dtype
        keep(self, patch_weight=None, patch_bias=None, patch_halves=None)
        self.refresh()

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the blocks."""
        return self.visual.positional_embedding.dtype

    def derive(self) -> None:
        """Cast the weights and fold the pixel normalization into the patch embedding."""
        visual: Any = self.clip.model.visual
        # not registered in `nn.Module`: the weights are those of the clip, or a private copy
        object.__setattr__(self, "visual", frozen_copy(visual, self._cast))
        self.blocks = self.open_blocks(self.visual.transformer)
        scaled = visual.conv1.weight.detach() / self.clip.std
        self.patch_weight = scaled
        folded = -(scaled * self.clip.mean).sum((1, 2, 3))
        bias = visual.conv1.bias  # None in open_clip's own models
        self.patch_bias = folded if bias is None else folded + bias.detach()
        self.patch_halves = halves_of(self.patch_weight, self.patch_bias, self.dtype)

    def open_blocks(self, transformer: nn.Module) -> list[OpenBlock]:
        """Wrap the blocks of the transformer."""
        return open_blocks(transformer)

    def forward(
        self,
        images: Tensor,
        prompts: Tensor | ImagePrompts | None = None,
        refiners: Refiners | None = None,
        *,
        keep_layers: bool = False,
        run_block: Callable[..., Tensor] | None = None,
    ) -> Any:
        """Compute unnormalized image features ``[B, D]``.

        Args:
            images: pixels ``[B, C, H, W]`` in [0, 1].
            prompts: visual prompts, ``[len(layers), V, width]``, or the result of `share`.
            refiners: for the second and the following blocks, at most one for each; each maps
                ``[B, N, width]`` to that shape. The weights in the result of `share` replace them.
            keep_layers: if True, also return the output of every block.
            run_block: `one_block`, or a compiled version of it, for all blocks but the last.

        Returns:
            The features; with ``keep_layers``, a pair of the features and a list of ``[B, N + V,
            width]``, one per block: class token, patch tokens, prompt tokens.

        Raises:
            ValueError: a shape is wrong.
        """
        self.refresh()
        self.clip.check_pixels(images)
        if not isinstance(prompts, ImagePrompts):
            self.check(prompts, refiners)
            prompts = self._shared(prompts, None, keys=not keep_layers)
        x, kept = self._blocks(
            self._embed(images), prompts, refiners, keep_layers, run_block or one_block
        )
        features = self._pool(x, whole=keep_layers)
        return (features, kept) if keep_layers else features

    def share(self, prompts: Tensor | None, refiners: Refiners | None = None) -> ImagePrompts:
        """Compute what does not depend on the images, for several calls with the same prompts.

        Raises:
            ValueError: a shape is wrong.
        """
        self.refresh()
        self.check(prompts, refiners)
        return self._shared(prompts, refiners, keys=True)

    def _shared(
        self, prompts: Tensor | None, refiners: Refiners | None, *, keys: bool
    ) -> ImagePrompts:
        tokens = [] if prompts is None else list(prompts.to(self.dtype))
        if self.layers[:1] == (0,):
            tokens[0] = self.visual.ln_pre(tokens[0])
        known = prompt_keys(self.blocks, self.layers, tokens) if keys else ((),) * len(tokens)
        return ImagePrompts(tuple(tokens), known, refiner_weights(refiners, self.dtype))

    def _embed(self, images: Tensor) -> Tensor:
        visual = self.visual
        inputs = images.to(self.patch_weight.dtype), self.patch_weight, self.patch_bias
        halves = self.patch_halves
        x = patches(*inputs) if halves is None else patches_bf16(*inputs, halves)
        x = x.to(self.dtype)
        first = visual.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = torch.cat([first, x], dim=1) + visual.positional_embedding.to(x.dtype)
        return visual.ln_pre(x)

    def _blocks(
        self,
        x: Tensor,
        prompts: ImagePrompts,
        refiners: Refiners | None,
        keep: bool,
        run_block: Callable[..., Tensor],
    ) -> tuple[Tensor, list[Tensor]]:
        kept: list[Tensor] = []
        tokens = dict(zip(self.layers, prompts.tokens, strict=True))
        keys = dict(zip(self.layers, prompts.keys, strict=True))
        extra: Tensor | None = None  # prompt tokens, [V, W] if equal for the batch, else [B, V, W]
        n = x.shape[1]
        for i, block in enumerate(self.blocks):
            weights = prompts.refiners[i - 1] if 0 < i <= len(prompts.refiners) else ()
            if not prompts.refiners and refiners is not None and 0 < i <= len(refiners):
                x = refiners[i - 1](x).to(x.dtype)
            extra, last = tokens.get(i, extra), i + 1 == len(self.blocks)
            # prompt tokens that the next layer replaces need no output
            follow = extra is not None and (keep or not (last or i + 1 in tokens))
            known = () if follow or extra is None else keys.get(i) or keys_of(block, extra)
            if last and not keep:
                return self._last(block, refine(x, *weights) if weights else x, known), kept
            x = run_block(block, x, weights, known, extra if follow else None)
            if keep:
                kept.append(x)
            if follow:
                x, extra = x[:, :n], x[:, n:]
        return x, kept

    def _last(self, block: OpenBlock, x: Tensor, known: tuple[Tensor, ...]) -> Tensor:
        """Apply the last block to the pooled tokens only."""
        pooled = slice(0, 1) if self.visual.pool_type == "tok" else slice(1, None)
        normed = block.norm(x)
        k, v = _joined(*block.keys_values(normed), known)
        mixed = attend(block.queries(normed[:, pooled]), k, v)
        return block.leave(x[:, pooled], mixed)

    def _pool(self, x: Tensor, *, whole: bool) -> Tensor:
        visual = self.visual
        average = visual.pool_type == "avg"
        if whole:
            x = x[:, 1:] if average else x[:, :1]
        if average and not visual.final_ln_after_pool:
            x = visual.ln_post(x).mean(dim=1)
        else:
            x = visual.ln_post(x.mean(dim=1) if average else x[:, 0])
        return x if visual.proj is None else x @ visual.proj.to(x.dtype)


def one_block(
    block: OpenBlock,
    x: Tensor,
    weights: tuple[Tensor, ...],
    known: tuple[Tensor, ...],
    extra: Tensor | None,
) -> Tensor:
    """Compute the output of a block, ``[B, N, width]``, or ``[B, N + V, width]`` with ``extra``.

    Args:
        block: the block.
        x: class token and patch tokens ``[B, N, width]``.
        weights: those of their refiner, see `refine`; empty without one.
        known: key and value of prompt tokens whose output is not needed; may be empty.
        extra: other prompt tokens, ``[V, width]`` or ``[B, V, width]``.
    """
    if weights:
        x = refine(x, *weights)
    if extra is not None:
        x = torch.cat([x, extra.expand(x.shape[0], *extra.shape[-2:])], dim=1)
    q, k, v = block.qkv(block.norm(x))
    return block.leave(x, attend(q, *_joined(k, v, known)))


def _joined(k: Tensor, v: Tensor, known: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Append the prompts' keys and values, if any, to those of the other tokens."""
    if not known:
        return k, v
    shape = (k.shape[0], *known[0].shape[-3:])
    return torch.cat([k, known[0].expand(shape)], 1), torch.cat([v, known[1].expand(shape)], 1)
