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
    def layers(self) -> int:
        """Layers that can have prompts of their own."""
        return len(self.transformer.resblocks)  # type: ignore[arg-type]

    @property
    def dtype(self) -> torch.dtype:
        """What the transformer computes in."""
        return self.positional_embedding.dtype


@dataclass(frozen=True)
class HFTextParts:
    """A Hugging Face text model in open_clip's adapter: prompts go among its input embeddings."""

    owner: Any
    token_embedding: nn.Module
    width: int
    pad_id: int
    layers: int = 0  # none of them can have prompts of its own
    pool_type: str = "model"  # its own pooler: the end of a text is found by the padding
    eos_id: int = -1


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


def text_parts(model: nn.Module) -> TextParts | HFTextParts | str:
    """The parts that a tower with prompts needs, or the reason why prompts don't fit."""
    owner = text_owner(model)
    if isinstance(owner, HFTextEncoder):
        embedding = owner.transformer.get_input_embeddings()
        return HFTextParts(
            owner, embedding, embedding.weight.shape[1], int(owner.config.pad_token_id or 0)
        )
    clip_layout = owner is model
    if not clip_layout and not isinstance(owner, TextTransformer):
        return f"the text tower is a {type(owner).__name__}, not open_clip's own transformer"
    return _parts(owner, clip_layout)


def _parts(owner: Any, clip_layout: bool) -> TextParts | str:
    if getattr(owner, "cls_emb", None) is not None:
        return "the text tower appends a class token"
    mask = getattr(owner, "attn_mask", None)
    pool = owner.text_pool_type if clip_layout else owner.pool_type
    if pool not in ("argmax", "eos", "first", "last"):
        return f"the text tower pools its tokens by {pool!r}"
    if pool == "first" and mask is not None:
        return "the text tower is causal and reads its first token, which no prompt reaches"
    if reason := unopened(owner.transformer):
        return f"the text tower can't be opened: {reason}"
    return TextParts(
        owner,
        owner.token_embedding,
        owner.positional_embedding,
        owner.transformer,
        owner.ln_final,
        owner.text_projection,
        mask,
        pool,
        int(owner.text_eos_id if clip_layout else owner.eos_id),
        int(owner.pad_id) if getattr(owner, "use_pad_mask", False) else None,
    )


def unopened(transformer: Any) -> str:
    """Why the transformer's blocks can't be opened; empty if they can."""
    for block in transformer.resblocks:
        attn = getattr(block, "attn", None)
        if not hasattr(attn, "in_proj_weight") or not hasattr(block, "ln_2"):
            return f"its blocks are {type(block).__name__}, not open_clip's residual attention"
        if getattr(attn, "logit_scale", None) is not None:
            return "its attention is a scaled cosine"
    return ""


def visual_prompts_fit(model: nn.Module) -> str:
    """Empty if visual prompts can be put into the image tower, else the reason why not."""
    visual: Any = model.visual
    if not isinstance(visual, VisionTransformer):
        return f"the image tower is a {type(visual).__name__}, not open_clip's VisionTransformer"
    if visual.attn_pool is not None:
        return "the image tower pools by attention"
    if visual.pool_type not in ("tok", "avg"):
        return f"the image tower pools by {visual.pool_type!r}"
    if reason := unopened(visual.transformer):
        return f"the image tower can't be opened: {reason}"
    return ""
