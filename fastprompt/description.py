"""What a CLIP looks like inside, and what can be done with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from open_clip.transformer import TextTransformer, VisionTransformer
from torch import Tensor, nn

if TYPE_CHECKING:
    from .clip import FrozenCLIP


@dataclass(frozen=True)
class TextParts:
    """The text tower of either open_clip layout, by one set of names."""

    token_embedding: nn.Embedding
    positional_embedding: Tensor  # [context_length, width]
    transformer: nn.Module
    ln_final: nn.Module
    text_projection: Tensor | nn.Linear | None
    attn_mask: Tensor  # [context_length, context_length], additive, causal
    pool_type: str  # argmax or eos
    eos_id: int

    @property
    def width(self) -> int:
        """Width of a token, and so of a prompt token."""
        return self.token_embedding.embedding_dim


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


def text_parts(model: nn.Module) -> TextParts | str:
    """The parts that a tower with prompts needs, or the reason why prompts don't fit."""
    owner = text_owner(model)
    clip_layout = owner is model
    if not clip_layout and not isinstance(owner, TextTransformer):
        return f"the text tower is a {type(owner).__name__}, not open_clip's own transformer"
    return _parts(owner, clip_layout)


def _parts(owner: Any, clip_layout: bool) -> TextParts | str:
    if getattr(owner, "cls_emb", None) is not None:
        return "the text tower appends a class token"
    if getattr(owner, "attn_mask", None) is None:
        return "the text tower is not causal"
    pool = owner.text_pool_type if clip_layout else owner.pool_type
    if pool not in ("argmax", "eos"):
        return f"the text tower pools its {pool} token, not the end of the text"
    return TextParts(
        owner.token_embedding,
        owner.positional_embedding,
        owner.transformer,
        owner.ln_final,
        owner.text_projection,
        owner.attn_mask,
        pool,
        int(owner.text_eos_id if clip_layout else owner.eos_id),
    )


def visual_prompts_fit(model: nn.Module) -> str:
    """Empty if visual prompts can be put into the image tower, else the reason why not."""
    visual: Any = model.visual
    if not isinstance(visual, VisionTransformer):
        return f"the image tower is a {type(visual).__name__}, not open_clip's VisionTransformer"
    if visual.attn_pool is not None:
        return "the image tower pools by attention"
    if visual.pool_type not in ("tok", "avg"):
        return f"the image tower pools by {visual.pool_type!r}"
    return ""


@dataclass(frozen=True)
class Description:
    """Facts of a model; a reason is empty where the thing fits. ``print`` shows it as a page."""

    name: str
    embed_dim: int
    image_size: int
    image_tower: str
    image_width: int | None
    image_layers: int | None
    patch_size: int | None
    text_tower: str
    text_width: int | None
    text_layers: int | None
    context_length: int
    causal: bool
    parameters: int
    methods: dict[str, str] = field(default_factory=dict)
    prompts: dict[str, str] = field(default_factory=dict)
    fast_paths: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        def sizes(width: int | None, layers: int | None) -> str:
            return "" if width is None else f", width {width}, {layers} layers"

        patch = "" if self.patch_size is None else f", patch {self.patch_size}"
        lines = [
            f"{self.name}: {self.parameters / 1e6:.1f} M parameters, embedding {self.embed_dim}",
            f"  image: {self.image_tower}{sizes(self.image_width, self.image_layers)}, "
            f"{self.image_size} pixels{patch}",
            f"  text:  {self.text_tower}{sizes(self.text_width, self.text_layers)}, "
            f"{self.context_length} tokens, {'causal' if self.causal else 'not causal'}",
        ]
        tables = (("method", self.methods), ("prompts", self.prompts), ("path", self.fast_paths))
        for title, table in tables:
            lines += [
                f"  {title} {k}: {'no: ' + why if why else 'yes'}" for k, why in table.items()
            ]
        return "\n".join(lines)


def describe(clip: FrozenCLIP) -> Description:
    """See `FrozenCLIP.describe`."""
    from .tuners.registry import TUNERS  # the tuners import this module's parts

    model: Any = clip.model
    visual, parts = model.visual, clip.text_parts
    vit = isinstance(visual, VisionTransformer)
    text = parts if isinstance(parts, TextParts) else None
    why_no_text = parts if isinstance(parts, str) else ""
    owner = text_owner(model)
    return Description(
        name=clip.name,
        embed_dim=clip.encode_text(["a"]).shape[1],
        image_size=clip.image_size,
        image_tower=type(visual).__name__,
        image_width=visual.conv1.out_channels if vit else None,
        image_layers=len(visual.transformer.resblocks) if vit else None,
        patch_size=visual.patch_size[0] if vit else None,
        text_tower="TextTransformer" if owner is model else type(owner).__name__,
        text_width=text.width if text else None,
        text_layers=len(text.transformer.resblocks) if text else None,  # type: ignore[arg-type]
        context_length=clip.context_length,
        causal=getattr(owner, "attn_mask", None) is not None,
        parameters=sum(p.numel() for p in model.parameters()),
        methods={name: tuner.unfit(clip) for name, tuner in TUNERS.items()},
        prompts={"text": why_no_text, "visual": visual_prompts_fit(model)},
        fast_paths={"text trimmed behind the longest prompt": why_no_text},
    )
