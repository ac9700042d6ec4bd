"""The weights of a transformers ``CLIPModel`` under open_clip's names, and the way back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor

# how a tensor is stored in both: equal, transposed, or as three tensors in one
Form = Literal["equal", "transposed", "joined"]

_WHOLE: tuple[tuple[str, str, Form], ...] = (
    ("logit_scale", "logit_scale", "equal"),
    ("vision_model.embeddings.class_embedding", "visual.class_embedding", "equal"),
    ("vision_model.embeddings.patch_embedding.weight", "visual.conv1.weight", "equal"),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding", "equal"),
    ("vision_model.pre_layrnorm.weight", "visual.ln_pre.weight", "equal"),
    ("vision_model.pre_layrnorm.bias", "visual.ln_pre.bias", "equal"),
    ("vision_model.post_layernorm.weight", "visual.ln_post.weight", "equal"),
    ("vision_model.post_layernorm.bias", "visual.ln_post.bias", "equal"),
    ("visual_projection.weight", "visual.proj", "transposed"),
    ("text_model.embeddings.token_embedding.weight", "token_embedding.weight", "equal"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding", "equal"),
    ("text_model.final_layer_norm.weight", "ln_final.weight", "equal"),
    ("text_model.final_layer_norm.bias", "ln_final.bias", "equal"),
    ("text_projection.weight", "text_projection", "transposed"),
)
_BLOCK: tuple[tuple[str, str, Form], ...] = (
    ("self_attn.{}_proj.", "attn.in_proj_", "joined"),
    ("self_attn.out_proj.", "attn.out_proj.", "equal"),
    ("layer_norm1.", "ln_1.", "equal"),
    ("layer_norm2.", "ln_2.", "equal"),
    ("mlp.fc1.", "mlp.c_fc.", "equal"),
    ("mlp.fc2.", "mlp.c_proj.", "equal"),
)


def names(image_layers: int, text_layers: int) -> Iterator[tuple[str, str, Form]]:
    """Yield each tensor's name in transformers (``{}`` for q, k, v) and in open_clip, and form."""
    yield from _WHOLE
    towers = (("vision_model", "visual.", image_layers), ("text_model", "", text_layers))
    for theirs, ours, layers in towers:
        for i in range(layers):
            for their, our, form in _BLOCK:
                for kind in ("weight", "bias"):
                    yield (
                        f"{theirs}.encoder.layers.{i}.{their}{kind}",
                        f"{ours}transformer.resblocks.{i}.{our}{kind}",
                        form,
                    )


def to_open_clip(
    state: Mapping[str, Tensor], image_layers: int, text_layers: int
) -> dict[str, Tensor]:
    """Return the state dict of open_clip's ``CLIP`` from that of a ``CLIPModel``.

    Raises:
        ValueError: a tensor is missing, or there is one that is not understood.
    """
    left = dict(state)
    out: dict[str, Tensor] = {}
    try:
        for theirs, ours, form in names(image_layers, text_layers):
            if form == "joined":
                out[ours] = torch.cat([left.pop(theirs.format(part)) for part in "qkv"])
            else:
                tensor = left.pop(theirs)
                out[ours] = tensor.T.contiguous() if form == "transposed" else tensor
    except KeyError as error:
        raise ValueError(f"it has no tensor {error.args[0]}") from None
    # a buffer of earlier versions of transformers
    extra = sorted(key for key in left if not key.endswith(".position_ids"))
    if extra:
        raise ValueError(f"its tensor {extra[0]} is not understood")
    return out


def to_transformers(
    state: Mapping[str, Tensor], image_layers: int, text_layers: int
) -> dict[str, Tensor]:
    """Return the state dict of a ``CLIPModel``; the inverse of `to_open_clip`.

    Raises:
        ValueError: a tensor is missing, or there is one that is not understood.
    """
    left = dict(state)
    out: dict[str, Tensor] = {}
    try:
        for theirs, ours, form in names(image_layers, text_layers):
            tensor = left.pop(ours)
            if form == "joined":
                out |= zip((theirs.format(p) for p in "qkv"), tensor.chunk(3), strict=True)
            else:
                out[theirs] = tensor.T if form == "transposed" else tensor
    except KeyError as error:
        raise ValueError(f"it has no tensor {error.args[0]}") from None
    if left:
        raise ValueError(f"a CLIPModel has no place for its tensor {min(left)}")
    return {name: tensor.detach().clone().contiguous() for name, tensor in out.items()}
