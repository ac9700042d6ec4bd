"""Complete prompts: encoders without a causal mask, whose tokens all attend to each other.

Two exact savings remain: padding that no token attends to is cut off, and the last layer is
computed only for the pooled token. Causal encoders take this path for few short prompts on a CPU,
where the shared prefix saves less than its separate operations cost.
"""

import dataclasses

import torch
from torch import Tensor, nn

from .._utils.attention import attend, causal_mask
from ..clip.parts import TextParts
from .base import keep
from .blocks import OpenText
from .image_base import Refiners
from .text_layout import TextLayout


def cut(layout: TextLayout, parts: TextParts) -> TextLayout:
    """Cut the padding after the longest prompt, if no pooled token attends to it."""
    if parts.attn_mask is not None:
        return dataclasses.replace(layout, ends=pooled_places(layout, parts)).trimmed()
    return layout.trimmed() if parts.pad_id is not None and parts.pool_type != "last" else layout


def few_whole(lengths: Tensor, shared: int, width: int, prompts: int) -> bool:
    """Return whether complete prompts are computed faster on a CPU than a shared prefix.

    They have more tokens, but fewer operations, and read the weights once instead of twice. The
    limit is half the number of additional tokens at which both took the same time, at widths of 96
    and 512.

    Args:
        lengths: tokens of each prompt, ``[C]``.
        shared: tokens of the shared prefix.
        width: width of the text encoder.
        prompts: number of prompts encoded together, K.
    """
    whole = len(lengths) * int(lengths.max())
    packed = shared + int((lengths - shared).sum())
    return prompts * (whole - packed) <= 24 + 2e6 / width**2


def pooled_places(layout: TextLayout, parts: TextParts) -> Tensor:
    """Return the position of each prompt's pooled token, ``[C]``."""
    if parts.pool_type == "first":
        return torch.zeros_like(layout.ends)
    if parts.pool_type == "last":
        return torch.full_like(layout.ends, layout.length - 1)
    return layout.ends


def other_places(places: Tensor, length: int) -> Tensor:
    """Return the positions in ``0..length - 1`` not in ``places [C, M]``: ``[C, length - M]``."""
    taken = torch.zeros(len(places), length, dtype=torch.int8, device=places.device)
    taken.scatter_(1, places, 1)
    return taken.argsort(dim=1, stable=True)[:, : length - places.shape[1]]


def padding_mask(ids: Tensor, pad_id: int | None, dtype: torch.dtype) -> Tensor | None:
    """Return an additive mask ``[C, 1, 1, T]`` that hides padding."""
    if pad_id is None:
        return None
    mask = torch.zeros(ids.shape, dtype=dtype, device=ids.device)
    return mask.masked_fill_(ids == pad_id, float("-inf"))[:, None, None]


class FullChunk(nn.Module):
    """Complete prompts of some classes.

    Args:
        text: `OpenText`, the text encoder's parts and blocks.
        layout: layout of all prompts, from `cut`.
        rows: classes of this chunk, ``[C]``.

    Attributes:
        order: equal to ``rows``.
        ids: token ids, ``[C, T]``.
        places: positions of the context tokens, ``[C, M]``.
        others: the other positions, ``[C, T - M]``.
        pooled: position of the pooled token, ``[C]``.
    """

    order: Tensor
    ids: Tensor
    places: Tensor
    others: Tensor
    pooled: Tensor

    def __init__(self, text: OpenText, layout: TextLayout, rows: Tensor) -> None:
        super().__init__()
        self.text = text
        places, pooled = layout.context[rows], pooled_places(layout, text.parts)[rows]
        keep(self, order=rows, ids=layout.ids[rows], places=places, pooled=pooled)
        keep(self, others=other_places(places, layout.length))

    def forward(self, context: Tensor, deep: Tensor | None, refiners: Refiners | None) -> Tensor:
        """Compute the states of the pooled tokens after the last layer, ``[K, C, width]``.

        Args:
            context: ``[K, M, width]``, or ``[K, all C, M, width]`` if class-specific.
            deep: context tokens that replace ``context`` before layers 1, 2, ...:
                ``[K, depth - 1, M, width]``.
            refiners: one for each block but the first; applied to all but context tokens.
        """
        parts = self.text.parts
        x = parts.token_embedding(self.ids).to(parts.dtype).expand(len(context), -1, -1, -1)
        x = put(x, self.places, context[:, self.order] if context.ndim == 4 else context[:, None])
        x = x + parts.positional_embedding[: x.shape[2]].to(parts.dtype)
        causal = None if parts.attn_mask is None else causal_mask(x.shape[2], x)
        mask = padding_mask(self.ids, parts.pad_id, x.dtype) if causal is None else causal
        depth = 1 if deep is None else deep.shape[1] + 1
        rows = torch.arange(x.shape[1], device=x.device)
        for i, block in enumerate(self.text.blocks):
            if refiners is not None and i > 0:
                x = put(x, self.others, refiners[i - 1](take(x, self.others)))
            if deep is not None and 0 < i < depth:
                x = put(x, self.places, deep[:, None, i - 1])
            normed = block.norm(x)
            if i + 1 < len(self.text.blocks):
                x = block.leave(x, attend(*block.qkv(normed), mask))
                continue
            k, v = block.keys_values(normed)
            q = block.queries(normed[:, rows, self.pooled][:, :, None])
            seen = mask if causal is None else causal[self.pooled][:, None, None]  # [C, 1, 1, T]
            x = block.leave(x[:, rows, self.pooled][:, :, None], attend(q, k, v, seen))
        return x[:, :, 0]


def put(x: Tensor, places: Tensor, tokens: Tensor) -> Tensor:
    """Put ``tokens [K, C or 1, M, W]`` at positions ``places [C, M]`` of ``x [K, C, T, W]``."""
    index = _index(x, places)
    return x.scatter(2, index, tokens.to(x.dtype).expand(index.shape))


def take(x: Tensor, places: Tensor) -> Tensor:
    """Return the tokens of ``x [K, C, T, W]`` at positions ``places [C, M]``: ``[K, C, M, W]``."""
    return x.gather(2, _index(x, places))


def _index(x: Tensor, places: Tensor) -> Tensor:
    return places[None, :, :, None].expand(len(x), -1, -1, x.shape[-1])
