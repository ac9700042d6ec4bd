"""Access to the modules of a CLIP's encoders, and checks whether they support prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import Tensor, nn


@dataclass(frozen=True)
class TextParts:
    """The modules of an open_clip text transformer, under the same names for both layouts."""

    owner: Any  # the module that contains the others
    token_embedding: nn.Embedding
    positional_embedding: Tensor  # [context_length, width]
    transformer: nn.Module
    ln_final: nn.Module
    text_projection: Tensor | nn.Linear | None
    attn_mask: Tensor | None  # [context_length, context_length], additive, causal
    pool_type: str  # argmax, eos, first or last
    eos_id: int
    pad_id: int | None  # set if the padding is masked in attention

    @property
    def width(self) -> int:
        """Width of the token embeddings and of the prompt tokens."""
        return self.token_embedding.embedding_dim

    @property
    def depth(self) -> int:
        """Number of transformer layers."""
        return len(self.transformer.resblocks)  # type: ignore[arg-type]

    @property
    def layers(self) -> int:
        """Number of layers that accept deep prompts: all of them."""
        return self.depth

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the transformer's computation."""
        return self.positional_embedding.dtype

    def project(self, pooled: Tensor) -> Tensor:
        """Project pooled tokens ``[..., width]`` to features ``[..., D]``."""
        projection = self.text_projection
        if projection is None:
            return pooled
        return projection(pooled) if isinstance(projection, nn.Module) else pooled @ projection


@dataclass(frozen=True)
class HFTextParts:
    """A Hugging Face text model in open_clip's adapter; prompts are input embeddings."""

    owner: Any
    token_embedding: nn.Module
    width: int
    pad_id: int
    depth: int
    layers: int = 0  # layers that accept deep prompts: none
    pool_type: str = "model"  # the adapter's pooler; it locates the end of a text by its padding
    eos_id: int = -1

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's computation."""
        return next(self.owner.parameters()).dtype

    def encode(self, embedded: Tensor, ids: Tensor) -> Tensor:
        """Encode embedded texts ``[N, T, width]`` with ids ``[N, T]`` to features ``[N, D]``."""
        attended = (ids != self.pad_id).long()
        out = self.owner.transformer(inputs_embeds=embedded, attention_mask=attended)
        features: Tensor = self.owner.proj(self.owner.pooler(out, attended))
        return features


# settings that change the features but not the names or shapes of the weights
_SETTINGS = ("num_heads", "pool_type", "text_pool_type", "eos_id", "text_eos_id", "pad_id", "eps")


def architecture(model: nn.Module) -> list[str]:
    """Return one line per module: its path, its class and the settings in `_SETTINGS`."""
    return [
        f"{place} {type(module).__name__} "
        + " ".join(f"{k}={getattr(module, k)}" for k in _SETTINGS if hasattr(module, k))
        for place, module in model.named_modules()
    ]


def text_owner(model: nn.Module) -> Any:
    """Return the text encoder; in open_clip's ``CLIP`` layout, this is the model itself."""
    return getattr(model, "text", model)


def input_channels(model: nn.Module) -> int | None:
    """Return the channels that the image encoder's first convolution takes; None without one."""
    visual: Any = model.visual
    first = getattr(visual, "conv1", None)
    modules = [*([] if first is None else first.modules()), *visual.modules()]
    return next((m.in_channels for m in modules if isinstance(m, nn.Conv2d)), None)


def image_width(model: nn.Module) -> int:
    """Return the width of the tokens of open_clip's VisionTransformer."""
    visual: Any = model.visual
    return int(visual.class_embedding.shape[-1])


def side(size: tuple[int, int]) -> int | tuple[int, int]:
    """Return the side of a square size ``(height, width)``; another size as it is."""
    return size[0] if size[0] == size[1] else size


def pooled(features: Any) -> Tensor:
    """Return the features of an encoder that may return a tuple, pooled features first."""
    out: Tensor = features[0] if isinstance(features, (tuple, list)) else features
    return out


def why_no_text_prompts(model: nn.Module) -> str:
    """Return why the text encoder's structure does not support prompts; empty if it does."""
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
        return "the text tower is causal and pools its first token, which no prompt reaches"
    reason = why_not_opened(owner.transformer)
    return f"the text tower is not supported: {reason}" if reason else ""


def text_parts(model: nn.Module) -> TextParts | HFTextParts:
    """Return the modules of a text encoder that supports prompts."""
    owner = text_owner(model)
    if isinstance(owner, HFTextEncoder):
        embedding, config = owner.transformer.get_input_embeddings(), owner.config
        return HFTextParts(
            owner,
            embedding,
            embedding.weight.shape[1],
            int(config.pad_token_id or 0),
            getattr(config, "num_hidden_layers", 12),  # used only to estimate memory
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
    """Return ``pool_type`` and ``eos_id``, which determine the pooled token."""
    if isinstance(owner, TextTransformer):
        return owner.pool_type, int(owner.eos_id)
    return owner.text_pool_type, int(owner.text_eos_id)


def why_not_opened(transformer: Any) -> str:
    """Return why the transformer's blocks are not supported; empty if they are."""
    for block in transformer.resblocks:
        attn = getattr(block, "attn", None)
        if not hasattr(attn, "in_proj_weight") or not hasattr(block, "ln_2"):
            return f"its blocks are {type(block).__name__}, not open_clip's residual attention"
        if getattr(attn, "logit_scale", None) is not None:
            return "its blocks use scaled cosine attention"
    return ""


def why_no_visual_prompts(model: nn.Module) -> str:
    """Return why the image encoder's structure does not support prompts; empty if it does."""
    visual: Any = model.visual
    if not isinstance(visual, VisionTransformer):
        return f"the image tower is a {type(visual).__name__}, not open_clip's VisionTransformer"
    if visual.attn_pool is not None:
        return "the image tower pools by attention"
    if visual.pool_type not in ("tok", "avg"):
        return f"the image tower pools by {visual.pool_type!r}"
    reason = why_not_opened(visual.transformer)
    return f"the image tower is not supported: {reason}" if reason else ""
