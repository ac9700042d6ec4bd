"""open_clip's residual attention block, split into steps that use the same weights."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from ..clip.parts import TextParts


def open_blocks(transformer: nn.Module) -> list[OpenBlock]:
    """Wrap each block of the transformer in an `OpenBlock`."""
    return [OpenBlock(block) for block in transformer.resblocks]  # type: ignore[union-attr]


class OpenText:
    """Parts of a text encoder, with its blocks as `OpenBlock`; shared by all modules using them."""

    parts: TextParts
    blocks: list[OpenBlock]

    def set(self, parts: TextParts) -> None:
        """Replace the parts and the blocks."""
        self.parts, self.blocks = parts, open_blocks(parts.transformer)


class OpenBlock:
    """Frozen block whose caller computes the attention, because prompts modify the attention.

    Call `norm`, then `qkv`, compute the attention, then call `leave` for the rest of the block.
    Tokens are ``[..., T, width]``; queries, keys and values are ``[..., T, H, width / H]``.
    """

    def __init__(self, block: Any) -> None:
        self.block, self.attn = block, block.attn
        self.heads = int(block.attn.num_heads)
        self.width = int(block.attn.out_proj.in_features)

    def norm(self, x: Tensor) -> Tensor:
        """Apply the LayerNorm before the attention."""
        return self.block.ln_1(x)

    def _project(self, normed: Tensor, first: int, last: int) -> tuple[Tensor, ...]:
        out = self._linear(normed, slice(first * self.width, last * self.width))
        return out.unflatten(-1, (last - first, self.heads, -1)).unbind(-3)

    def _linear(self, normed: Tensor, rows: slice) -> Tensor:
        bias = self.attn.in_proj_bias
        return F.linear(
            normed, self.attn.in_proj_weight[rows], None if bias is None else bias[rows]
        )

    def _head_norm(self, name: str, x: Tensor) -> Tensor:
        norm = getattr(self.attn, name, None)
        return x if norm is None else norm(x)

    def qkv(self, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute queries, keys and values of all tokens."""
        q, k, v = self._project(normed, 0, 3)
        return self._head_norm("ln_q", q), self._head_norm("ln_k", k), v

    def queries(self, normed: Tensor) -> Tensor:
        """Compute only the queries."""
        return self._head_norm("ln_q", self._project(normed, 0, 1)[0])

    def keys_values(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """Compute only the keys and values."""
        k, v = self._project(normed, 1, 3)
        return self._head_norm("ln_k", k), v

    def leave(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Apply residual, MLP, residual; ``mixed`` is the attention's output ``[..., T, H, d]``."""
        block, attn = self.block, self.attn
        scale = getattr(attn, "head_scale", None)
        if scale is not None:
            mixed = mixed * scale.view(self.heads, 1)
        mixed = mixed.flatten(-2)
        if hasattr(attn, "ln_inner"):
            mixed = attn.ln_inner(mixed)
        out = self._out(mixed)
        if hasattr(block, "ln_attn"):
            out = block.ln_attn(out)
        x = x + block.ls_1(out)
        return x + block.ls_2(self._mlp(block.ln_2(x)))

    def _out(self, mixed: Tensor) -> Tensor:
        return self.attn.out_proj(mixed)

    def _mlp(self, x: Tensor) -> Tensor:
        mlp = self.block.mlp
        if not isinstance(getattr(mlp, "gelu", None), QuickGELU) or not hasattr(mlp, "c_fc"):
            return mlp(x)
        # x sigmoid(1.702 x) by the fused silu: fewer passes, one saved tensor instead of two
        hidden = F.silu(mlp.c_fc(x).mul_(1.702)).mul_(1 / 1.702)
        return mlp.c_proj(mlp.ln(hidden) if hasattr(mlp, "ln") else hidden)
