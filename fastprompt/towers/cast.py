"""Copies of frozen modules in another precision."""

import copy
import dataclasses
from typing import TypeVar

import torch
from open_clip.transformer import LayerNormFp32
from torch import nn

from ..clip.parts import HFTextParts, TextParts

M = TypeVar("M", bound=nn.Module)


def frozen_copy(module: M, dtype: torch.dtype | None) -> M:
    """Return ``module`` itself if it has that dtype or ``dtype`` is None, else a cast copy."""
    if dtype is None or dtype == next(module.parameters()).dtype:
        return module
    copied = copy.deepcopy(module).to(dtype).requires_grad_(False)
    for part in copied.modules():
        if isinstance(part, LayerNormFp32):
            part.float()  # it computes in float32 for inputs of any dtype
    return copied


def cast_text(parts: TextParts, dtype: torch.dtype | None) -> TextParts:
    """Return a text encoder's parts in ``dtype``: ``parts`` itself, or with cast copies."""
    if dtype is None or dtype == parts.dtype:
        return parts
    projection = parts.text_projection
    if isinstance(projection, nn.Module):
        projection = frozen_copy(projection, dtype)
    elif projection is not None:
        projection = projection.detach().to(dtype)
    return dataclasses.replace(
        parts,
        transformer=frozen_copy(parts.transformer, dtype),
        ln_final=frozen_copy(parts.ln_final, dtype),
        positional_embedding=parts.positional_embedding.detach().to(dtype),
        text_projection=projection,
    )


def cast_hf(parts: HFTextParts, dtype: torch.dtype | None) -> HFTextParts:
    """Return a Hugging Face model's parts in ``dtype``; see `cast_text`."""
    owner = frozen_copy(parts.owner, dtype)
    if owner is parts.owner:
        return parts
    embedding = owner.transformer.get_input_embeddings()
    return dataclasses.replace(parts, owner=owner, token_embedding=embedding)
