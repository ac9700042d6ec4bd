"""Reference towers: the same features from open_clip's own modules, with prompts inserted.

They compute what published code computes: every class at the tokenizer's full length, every token
in every layer, several prompts one after another. The benchmarks use them as the baseline, and the
equality tests compare the fast towers with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from open_clip.transformer import text_global_pool
from torch import Tensor, nn

from .._utils.attention import plain_attention
from ..clip.frozen import FrozenCLIP
from ..clip.parts import HFTextParts, TextParts
from .base import keep
from .image_base import PromptedImage, Refiners
from .text_base import PromptedText


class ReferenceTextTower(PromptedText):
    """Text tower that runs open_clip's own modules; see `PromptedText` for the arguments."""

    ids: Tensor
    places: Tensor

    def __init__(
        self, clip: FrozenCLIP, classnames: Sequence[str], n_ctx: int, **options: Any
    ) -> None:
        super().__init__(clip, classnames, n_ctx, **options)
        keep(self, ids=self.layout.ids, places=self.layout.context)

    def derive(self) -> None:
        self.parts = self.clip.text_parts  # moving the model creates a new mask

    def encode(
        self, context: Tensor, deep: Tensor | None, refiners: tuple[nn.Module, ...] | None
    ) -> Tensor:
        depths = [None] * len(context) if deep is None else list(deep)
        with plain_attention():
            each = [self._one(c, d, refiners) for c, d in zip(context, depths, strict=True)]
            return torch.stack(each)

    def _one(self, context: Tensor, deep: Tensor | None, refiners: Refiners | None) -> Tensor:
        """Encode context ``[M, W]`` or ``[C, M, W]``, deep ``[depth - 1, M, W]`` to ``[C, D]``."""
        parts = self.parts
        x = self._put(parts.token_embedding(self.ids), context)  # [C, length, W]
        if isinstance(parts, HFTextParts):
            return parts.encode(x, self.ids)
        x = x + parts.positional_embedding[: x.shape[1]]
        x = self._transformer(parts, x, deep, refiners)
        x = parts.ln_final(x)
        return parts.project(text_global_pool(x, self.ids, parts.pool_type, parts.eos_id))

    def _transformer(
        self, parts: TextParts, x: Tensor, deep: Tensor | None, refiners: Refiners | None
    ) -> Tensor:
        mask = parts.attn_mask
        if parts.pad_id is not None:
            mask = parts.owner._build_additive_mask(self.ids, x.shape[1], x.dtype)
        rows = torch.arange(len(x), device=x.device)[:, None]
        for i, block in enumerate(parts.transformer.resblocks):  # type: ignore[arg-type]
            if refiners is not None and i > 0:
                # refine every token, then restore the context tokens
                x = self._put(refiners[i - 1](x), x[rows, self.places])
            if deep is not None and 0 < i <= len(deep):
                x = self._put(x, deep[i - 1])
            x = run_block(parts.transformer, block, x, mask)
        return x

    def _put(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Put ``tokens [M, W]`` or ``[C, M, W]`` at the context's positions in ``x [C, T, W]``."""
        if not self.n_ctx:
            return x
        rows = torch.arange(len(x), device=x.device)[:, None]
        return x.index_put((rows, self.places), tokens.to(x.dtype).expand(len(x), -1, -1))


def run_block(transformer: Any, block: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Run an open_clip block on ``x [B, T, W]``, in the dimension order that it expects."""
    if transformer.batch_first:
        return block(x, attn_mask=mask)
    return block(x.transpose(0, 1), attn_mask=mask).transpose(0, 1)


class ReferenceImageTower(PromptedImage):
    """Image tower that runs open_clip's own modules; see `PromptedImage` for the arguments."""

    def forward(
        self,
        images: Tensor,
        prompts: Tensor | None = None,
        refiners: Refiners | None = None,
        *,
        keep_layers: bool = False,
    ) -> Any:
        """Compute unnormalized image features; see `ImageTower.forward`."""
        clip = self.clip
        visual: Any = self.clip.model.visual
        clip.check_pixels(images)
        blocks = visual.transformer.resblocks
        self.check(prompts, refiners)
        own = {} if prompts is None else dict(zip(self.layers, prompts, strict=True))
        with plain_attention():
            x = self._patches(((images - clip.mean) / clip.std).to(clip.dtype))
            n = x.shape[1]
            if 0 in own:
                x = torch.cat([x, own[0].to(x.dtype).expand(x.shape[0], -1, -1)], dim=1)
            x = visual.ln_pre(x)
            kept = []
            for i, block in enumerate(blocks):
                tokens, extra = x[:, :n], x[:, n:]
                if refiners is not None and 0 < i <= len(refiners):
                    tokens = refiners[i - 1](tokens)
                if i > 0 and i in own:
                    extra = own[i].to(x.dtype).expand(x.shape[0], -1, -1)
                x = run_block(visual.transformer, block, torch.cat([tokens, extra], dim=1))
                kept.append(x)
            pooled, _ = visual._pool(x[:, :n])
        features = pooled if visual.proj is None else pooled @ visual.proj
        return (features, kept) if keep_layers else features

    def _patches(self, pixels: Tensor) -> Tensor:
        """Compute class and patch tokens with positional embeddings, before ``ln_pre``."""
        visual: Any = self.clip.model.visual
        x = visual.conv1(pixels).flatten(2).transpose(1, 2)
        first = visual.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = torch.cat([first, x], dim=1) + visual.positional_embedding.to(x.dtype)
        return visual.patch_dropout(x)
