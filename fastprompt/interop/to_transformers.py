"""A tuned classifier in transformers: its ``CLIPModel``, and class features for the texts."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from .._utils.unpickling import first_line
from ..clip.from_transformers import pooled
from ..clip.frozen import FrozenCLIP
from ..clip.parts import HFTextParts, TextParts, why_no_visual_prompts
from ..clip.transformers_files import require_transformers
from ..clip.transformers_layout import to_transformers as renamed
from ..model.classifier import CLIPClassifier
from .exporting import check_text_alone

_OLD_EOS = 2  # pools the token with the highest id
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}  # relative differences of features


class InTransformers(NamedTuple):
    """A classifier in transformers.

    Attributes:
        model: a ``CLIPModel`` with the weights of the frozen model.
        text_embeds: the L2-normalized class features ``[C, D]``, of the tuned prompts.
        classnames: the C class names.
    """

    model: Any
    text_embeds: Tensor
    classnames: list[str]


def to_transformers(classifier: CLIPClassifier) -> InTransformers:
    """Return a ``CLIPModel`` and class features that give the classifier's logits.

    See `fastprompt.model.CLIPClassifier.to_transformers`.
    """
    check_text_alone(classifier, "to_transformers takes prompts that are text alone")
    model = clip_model(classifier.clip)
    text = classifier.text_features.detach().clone().to(next(model.parameters()).dtype)
    return InTransformers(model, text, list(classifier.classnames))


def clip_model(clip: FrozenCLIP) -> Any:
    """Convert a frozen CLIP with open_clip's transformers to a ``CLIPModel``; it is copied.

    Raises:
        ImportError: transformers is not installed.
        ValueError: a ``CLIPModel`` lacks a part or a setting of the model.
    """
    transformers = require_transformers("to_transformers")
    if reason := _why_not(clip):
        raise ValueError(f"clip: {clip.name} has no counterpart in transformers: {reason}")
    visual: Any = clip.model.visual
    parts = clip.text_parts
    assert isinstance(parts, TextParts)
    config = transformers.CLIPConfig(
        projection_dim=visual.proj.shape[1],
        vision_config={
            **_sizes(visual.transformer),
            "image_size": clip.image_size,
            "patch_size": visual.conv1.kernel_size[0],
            "projection_dim": visual.proj.shape[1],
        },
        text_config={
            **_sizes(parts.transformer),
            "vocab_size": parts.token_embedding.num_embeddings,
            "max_position_embeddings": len(parts.positional_embedding),
            "eos_token_id": parts.eos_id if parts.pool_type == "eos" else _OLD_EOS,
            "projection_dim": visual.proj.shape[1],
        },
    )
    try:
        state = renamed(_state(clip, parts), len(visual.transformer.resblocks), parts.depth)
        with torch.random.fork_rng([]):
            model = transformers.CLIPModel(config)
        model.to(clip.dtype).load_state_dict(state)
    except (ValueError, RuntimeError) as error:  # the second for another shape
        raise ValueError(
            f"clip: {clip.name} has no counterpart in transformers: {first_line(error)}"
        ) from None
    model.to(clip.device).eval().requires_grad_(False)
    _check_features(clip, model)
    return model


def _why_not(clip: FrozenCLIP) -> str:
    """Return what a ``CLIPModel`` lacks; empty if nothing is known, the rest is compared."""
    if reason := why_no_visual_prompts(clip.model):
        return reason
    parts = clip.text_parts
    visual: Any = clip.model.visual
    height, width = visual.conv1.kernel_size
    if isinstance(parts, HFTextParts):
        return "its text tower is a Hugging Face text model of another kind"
    blocks = [*visual.transformer.resblocks, *parts.transformer.resblocks]  # type: ignore[misc]
    checks = {
        "its activation is neither GELU nor QuickGELU": not all(map(_known_gelu, blocks)),
        "its images are not square": not isinstance(clip.image_size, int) or height != width,
        "its image tower does not pool the class token": visual.pool_type != "tok",
        "it has a logit bias": clip.logit_bias is not None,
        "its text tower is not causal": parts.attn_mask is None,
        f"its text tower pools by {parts.pool_type!r}": parts.pool_type not in ("argmax", "eos"),
        "its text tower masks the padding": parts.pad_id is not None,
        "an encoder has no projection": visual.proj is None or parts.text_projection is None,
    }
    return next((reason for reason, present in checks.items() if present), "")


def _known_gelu(block: Any) -> bool:
    gelu = getattr(block.mlp, "gelu", None)
    exact = isinstance(gelu, nn.GELU) and gelu.approximate == "none"
    return exact or isinstance(gelu, QuickGELU)


def _sizes(transformer: Any) -> dict[str, Any]:
    block = transformer.resblocks[0]
    return {
        "hidden_size": block.ln_1.weight.shape[0],
        "intermediate_size": block.mlp.c_fc.out_features,
        "num_hidden_layers": len(transformer.resblocks),
        "num_attention_heads": block.attn.num_heads,
        "layer_norm_eps": block.ln_1.eps,
        "hidden_act": "quick_gelu" if isinstance(block.mlp.gelu, QuickGELU) else "gelu",
    }


def _state(clip: FrozenCLIP, parts: TextParts) -> dict[str, Tensor]:
    """Return the weights under the names of open_clip's ``CLIP``, for both of its layouts."""
    state = {k.removeprefix("text."): v for k, v in clip.model.state_dict().items()}
    projection = parts.text_projection
    if isinstance(projection, nn.Linear):
        state["text_projection"] = state.pop("text_projection.weight").T
    return state


@torch.no_grad()
def _check_features(clip: FrozenCLIP, model: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(1, *clip.pixel_shape, generator=generator).to(clip.device, clip.mean.dtype)
    tokens = clip.tokenizer(["a", "the very long tail of a bird"]).to(clip.device)
    normal = (pixels - clip.mean) / clip.std
    pairs = {
        "image": (model.get_image_features(pixel_values=normal), clip.encode_image(pixels)),
        "text": (model.get_text_features(input_ids=tokens), clip.encode_tokens(tokens)),
    }
    for part, (found, wanted) in pairs.items():
        apart = float(((pooled(found) - wanted).norm(dim=-1) / wanted.norm(dim=-1)).max())
        if not apart <= _ROUNDING[clip.dtype]:
            raise ValueError(
                f"clip: {clip.name} has no counterpart in transformers: the {part} features of a "
                f"CLIPModel with its weights differ by {apart:.1e}, relatively"
            )
