"""What the towers take a CLIP apart into, and why prompts don't fit where they don't."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import Tensor, nn


@dataclass(frozen=True)
class TextParts:
    """An open_clip text transformer of either layout, by one set of names."""

    owner: Any  # the module that holds the rest
    token_embedding: nn.Embedding
    positional_embedding: Tensor  # [context_length, width]
    transformer: nn.Module
    ln_final: nn.Module
    text_projection: Tensor | nn.Linear | None
    attn_mask: Tensor | None  # [context_length, context_length], additive, causal
    pool_type: str  # argmax, eos, first or last
    eos_id: int
    pad_id: int | None  # of padding that no token attends to

    @property
    def width(self) -> int:
        """Width of a token, and so of a prompt token."""
        return self.token_embedding.embedding_dim

    @property
    def depth(self) -> int:
        """Layers of the transformer."""
        return len(self.transformer.resblocks)  # type: ignore[arg-type]

    @property
    def layers(self) -> int:
        """Layers that can have prompts of their own: all."""
        return self.depth

    @property
    def dtype(self) -> torch.dtype:
        """What the transformer computes in."""
        return self.positional_embedding.dtype

    def project(self, pooled: Tensor) -> Tensor:
        """The pooled tokens' features: ``[..., width]`` to ``[..., D]``."""
        projection = self.text_projection
        if projection is None:
            return pooled
        return projection(pooled) if isinstance(projection, nn.Module) else pooled @ projection


@dataclass(frozen=True)
class HFTextParts:
    """A Hugging Face text model in open_clip's adapter: prompts go among its input embeddings."""

    owner: Any
    token_embedding: nn.Module
    width: int
    pad_id: int
    depth: int
    layers: int = 0  # that can have prompts of their own: none
    pool_type: str = "model"  # its own pooler: the end of a text is found by the padding
    eos_id: int = -1

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return next(self.owner.parameters()).dtype

    def encode(self, embedded: Tensor, ids: Tensor) -> Tensor:
        """Features ``[N, D]`` of embedded texts ``[N, T, width]`` and their ids ``[N, T]``."""
        attended = (ids != self.pad_id).long()
        out = self.owner.transformer(inputs_embeds=embedded, attention_mask=attended)
        features: Tensor = self.owner.proj(self.owner.pooler(out, attended))
        return features


# what changes a model's features without changing its weights' names or shapes
_SETTINGS = ("num_heads", "pool_type", "text_pool_type", "eos_id", "text_eos_id", "pad_id", "eps")


def architecture(model: nn.Module) -> list[str]:
    """One line a module: its place, its class and the settings that no weight shows."""
    return [
        f"{place} {type(module).__name__} "
        + " ".join(f"{k}={getattr(module, k)}" for k in _SETTINGS if hasattr(module, k))
        for place, module in model.named_modules()
    ]


def text_owner(model: nn.Module) -> Any:
    """The module that holds the text tower: the model itself in open_clip's ``CLIP`` layout."""
    return getattr(model, "text", model)


def why_no_text_prompts(model: nn.Module) -> str:
    """Why prompts can't be put into the text tower; empty if they can."""
    owner = text_owner(model)
    if isinstance(owner, HFTextEncoder):
        return ""
    if owner is not model and not isinstance(owner, TextTransformer):
        return f"the text tower is a {type(owner).__name__}, not open_clip's own transformer"
    if getattr(owner, "cls_emb", None) is not None:
        return "the text tower appends a class token"
    pool, _ = _pooling(owner)
    if pool not in ("argmax", "eos", "first", "last"):
        return f"the text tower pools its tokens by {pool!r}"
    if pool == "first" and owner.attn_mask is not None:
        return "the text tower is causal and reads its first token, which no prompt reaches"
    reason = why_not_opened(owner.transformer)
    return f"the text tower can't be opened: {reason}" if reason else ""


def text_parts(model: nn.Module) -> TextParts | HFTextParts:
    """The parts that a tower with prompts needs, of a model that takes them."""
    owner = text_owner(model)
    if isinstance(owner, HFTextEncoder):
        embedding, config = owner.transformer.get_input_embeddings(), owner.config
        return HFTextParts(
            owner,
            embedding,
            embedding.weight.shape[1],
            int(config.pad_token_id or 0),
            getattr(config, "num_hidden_layers", 12),  # only how many classes fit is guessed by it
        )
    return TextParts(
        owner,
        owner.token_embedding,
        owner.positional_embedding,
        owner.transformer,
        owner.ln_final,
        owner.text_projection,
        owner.attn_mask,
        *_pooling(owner),
        int(owner.pad_id) if getattr(owner, "use_pad_mask", False) else None,
    )


def _pooling(owner: Any) -> tuple[str, int]:
    """What tells the token that is read: ``pool_type`` and ``eos_id``."""
    if isinstance(owner, TextTransformer):
        return owner.pool_type, int(owner.eos_id)
    return owner.text_pool_type, int(owner.text_eos_id)


def why_not_opened(transformer: Any) -> str:
    """Why the transformer's blocks can't be opened; empty if they can."""
    for block in transformer.resblocks:
        attn = getattr(block, "attn", None)
        if not hasattr(attn, "in_proj_weight") or not hasattr(block, "ln_2"):
            return f"its blocks are {type(block).__name__}, not open_clip's residual attention"
        if getattr(attn, "logit_scale", None) is not None:
            return "its attention is a scaled cosine"
    return ""


def why_no_visual_prompts(model: nn.Module) -> str:
    """Why prompts can't be put into the image tower; empty if they can."""
    visual: Any = model.visual
    if not isinstance(visual, VisionTransformer):
        return f"the image tower is a {type(visual).__name__}, not open_clip's VisionTransformer"
    if visual.attn_pool is not None:
        return "the image tower pools by attention"
    if visual.pool_type not in ("tok", "avg"):
        return f"the image tower pools by {visual.pool_type!r}"
    reason = why_not_opened(visual.transformer)
    return f"the image tower can't be opened: {reason}" if reason else ""
