"""Frozen modules in another precision."""

import copy
import dataclasses
from typing import TypeVar

import torch
from torch import nn

from ..description import HFTextParts, TextParts

M = TypeVar("M", bound=nn.Module)


def frozen_copy(module: M, dtype: torch.dtype | None) -> M:
    """``module`` itself if it has that dtype already (or None is asked for), else a cast copy."""
    if dtype is None or dtype == next(module.parameters()).dtype:
        return module
    return copy.deepcopy(module).to(dtype).requires_grad_(False)


def cast_text(parts: TextParts, dtype: torch.dtype | None) -> tuple[TextParts, nn.Module]:
    """The text tower in ``dtype``, and a module that holds what was copied, to move it with."""
    holder = nn.Module()
    if dtype is None or dtype == parts.dtype:
        return parts, holder
    holder.transformer = frozen_copy(parts.transformer, dtype)
    holder.ln_final = frozen_copy(parts.ln_final, dtype)
    for name in ("positional_embedding", "text_projection"):
        part = getattr(parts, name)
        if isinstance(part, nn.Module):
            part = frozen_copy(part, dtype)
        elif part is not None:
            part = nn.Parameter(part.detach().to(dtype), requires_grad=False)
        setattr(holder, name, part)
    names = ("transformer", "ln_final", "positional_embedding", "text_projection")
    return dataclasses.replace(parts, **{name: getattr(holder, name) for name in names}), holder


def cast_hf(parts: HFTextParts, dtype: torch.dtype | None) -> tuple[HFTextParts, nn.Module]:
    """Likewise for a Hugging Face model."""
    owner = frozen_copy(parts.owner, dtype)
    if owner is parts.owner:
        return parts, nn.Module()
    embedding = owner.transformer.get_input_embeddings()
    return dataclasses.replace(parts, owner=owner, token_embedding=embedding), owner
