"""The methods and fast paths that support a model, and the reasons why others do not."""

from __future__ import annotations

from typing import Any

from open_clip.transformer import VisionTransformer

from ..clip.description import Description
from ..clip.frozen import FrozenCLIP
from ..clip.parts import (
    HFTextParts,
    TextParts,
    image_width,
    side,
    text_owner,
    why_no_text_prompts,
    why_no_visual_prompts,
)
from ..towers.compare import ENGINES, gap
from .registry import TUNERS


def describe(clip: FrozenCLIP) -> Description:
    """Describe ``clip``; see `FrozenCLIP.describe`."""
    model: Any = clip.model
    visual, owner = model.visual, text_owner(model)
    vit = isinstance(visual, VisionTransformer)
    why_no = {"text": clip.why_no_text_prompts(), "visual": clip.why_no_visual_prompts()}
    parts = None if why_no["text"] else clip.text_parts
    text = parts if isinstance(parts, TextParts) else None
    return Description(
        name=clip.name,
        embed_dim=clip.embed_dim,
        image_size=clip.image_size,
        image_tower=type(visual).__name__,
        image_width=image_width(model) if vit else None,
        image_layers=len(visual.transformer.resblocks) if vit else None,
        patch_size=side(visual.patch_size) if vit else None,
        text_tower="TextTransformer" if owner is model else type(owner).__name__,
        text_width=text.width if text else None,
        text_layers=text.depth if text else None,
        context_length=clip.context_length,
        causal=getattr(owner, "attn_mask", None) is not None,
        parameters=sum(p.numel() for p in model.parameters()),
        methods={name: tuner.unfit(clip) for name, tuner in TUNERS.items()},
        prompts=why_no,
        fast_paths=_fast_paths(parts, **_why_not_fast(clip, why_no)),
        compared=_compared(clip),
    )


def _compared(clip: FrozenCLIP) -> dict[str, str]:
    """Return the result of comparing each tower with the model's own forward pass."""
    structure = {"image": why_no_visual_prompts, "text": why_no_text_prompts}
    own = {"image": "only the model's own encode_image is used", "text": "no text tower"}
    out: dict[str, str] = {}
    for encoder, why_no in structure.items():
        if why_no(clip.model):
            out[f"{encoder} encoder"] = own[encoder]
            continue
        for engine in ENGINES:
            found = gap(clip, encoder, engine)
            verdict = "equal" if found.exact else "not used"
            out[f"{encoder} encoder, {engine} engine"] = f"{verdict}, {found}"
    return out


def _why_not_fast(clip: FrozenCLIP, why_no: dict[str, str]) -> dict[str, str]:
    """Return, for each encoder, why its fast tower is not used; empty if it is."""
    encoders = {"text": "text", "visual": "image"}
    return {
        kind: why or ("" if (found := gap(clip, encoders[kind], "fast")).exact else str(found))
        for kind, why in why_no.items()
    }


def _fast_paths(parts: TextParts | HFTextParts | None, text: str, visual: str) -> dict[str, str]:
    """Return, for each optimization of the fast engine, why it does not apply; empty if it does."""
    if parts is None or text:
        prefix = trimmed = last = text
    elif isinstance(parts, HFTextParts):
        prefix, trimmed = "a Hugging Face text model attends in both directions", ""
        last = "a Hugging Face text model runs its own layers"
    else:
        causal = parts.attn_mask is not None
        prefix, last = "" if causal else "the text tower is not causal", ""
        trimmed = ""
        if parts.pool_type == "last":
            trimmed = "the text tower reads its last token, behind the padding"
        elif not causal and parts.pad_id is None:
            trimmed = "the text tower attends to the padding"
    return {
        "text prefix computed once for all classes": prefix,
        "text cut behind the end of the prompts": trimmed,
        "text last layer for the token that is read": last,
        "image last block for the pooled tokens": visual,
    }
