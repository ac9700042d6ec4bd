"""Read prompts from Dassl checkpoints of CoOp, AdvPT, APT, MaPLe and FAP.

Such a file is a pickled ``{"state_dict": ..., "epoch": ..., "optimizer": ..., "scheduler": ...,
"val_result": ...}``; `_utils.unpickling` reads it without executing code from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .._utils.unpickling import read_checkpoint

Kind = Literal["context", "class-specific context", "multi-modal"]


_LEARNER = "prompt_learner."
_WRAPPER = "module."  # torch's DataParallel
_TEXTS, _MAPS = "compound_prompts_text", "compound_prompt_projections"
_READ = re.compile(rf"ctx|proj\.(weight|bias)|{_TEXTS}\.\d+|{_MAPS}\.\d+\.(weight|bias)")
# CLIP's frozen weights, and buffers computed from them
_FROZEN = ("token_", "ZS_", "image_encoder.", "text_encoder.", "logit_scale")


@dataclass(frozen=True, eq=False)
class ForeignPrompts:
    """Prompts of a checkpoint, in float32.

    Attributes:
        context: context tokens of the first layer, ``[M, text_width]``, or ``[C, M, text_width]``
            if they are class-specific.
        deep: tokens that replace the context tokens in layers 1, 2, ... of the text encoder,
            ``[depth - 1, M, text_width]``; None without visual prompts.
        maps: linear maps from text to visual prompts of each layer: weight ``[depth, image_width,
            text_width]`` and bias ``[depth, image_width]``; None without visual prompts.
        classes: number C of classes they were tuned on; None if the file does not record it.
        epoch: number of epochs they were tuned for; None if the file does not record it.
    """

    context: Tensor
    deep: Tensor | None = None
    maps: tuple[Tensor, Tensor] | None = None
    classes: int | None = None
    epoch: int | None = None

    @property
    def kind(self) -> Kind:
        """Kind of the prompts."""
        if self.maps is not None:
            return "multi-modal"
        return "context" if self.context.ndim == 2 else "class-specific context"

    @property
    def depth(self) -> int:
        """Number of layers with separate prompts."""
        return 1 if self.deep is None else len(self.deep) + 1

    @property
    def text_width(self) -> int:
        """Width of the text encoder that the prompts fit."""
        return self.context.shape[-1]

    @property
    def image_width(self) -> int | None:
        """Width of the image encoder that the prompts fit; None without visual prompts."""
        return None if self.maps is None else self.maps[1].shape[1]

    def state(self) -> dict[str, Tensor]:
        """Return the state dict for `TextContext` or, with visual prompts, `DeepPrompts`."""
        if self.maps is None or self.deep is None:
            return {"tokens": self.context}
        weight, bias = self.maps
        tokens = torch.cat([self.context[None], self.deep])  # [depth, M, W]
        return {"tokens": tokens, "map_weight": weight, "map_bias": bias[:, None]}


# ---- reading -----------------------------------------------------------------------------------


def read_prompts(path: str | Path) -> ForeignPrompts:
    """Read the prompts from a checkpoint of CoOp, AdvPT, APT, MaPLe or FAP, or code built on these.

    The file does not record the position of the class name; it is assumed to be at the end, the
    default of all these methods.

    Args:
        path: the file, such as ``prompt_learner/model.pth.tar-50``; no code in it is executed.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a checkpoint, has objects of unknown classes, no prompts or
            unsupported trained tensors, or its prompts are incomplete, not finite or inconsistent.
    """
    path = Path(path)
    content = read_checkpoint(path, name="path")
    try:
        return _prompts(content)
    except ValueError as error:
        raise ValueError(f"path: {path} {error}") from None


def _prompts(content: Mapping[Any, Any]) -> ForeignPrompts:
    state, epoch = content.get("state_dict", content), content.get("epoch")
    if not isinstance(state, Mapping):
        raise ValueError(f"has a {type(state).__name__} as its state_dict, not a mapping")
    entries = _entries(state)
    context = _take(entries, "ctx")
    if context.ndim not in (2, 3) or 0 in context.shape:
        raise ValueError(
            f"has a ctx of shape {list(context.shape)}; must be [M, width] or [classes, M, width]"
        )
    deep, maps = _deep(entries, context)
    epochs = epoch if type(epoch) is int else None
    return ForeignPrompts(context, deep, maps, _classes(entries, context), epochs)


def _entries(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the prompt learner's tensors, with the prefixes of wrapping modules removed."""
    plain = {
        key.removeprefix(_WRAPPER): value
        for key, value in state.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    marked = {k.removeprefix(_LEARNER): v for k, v in plain.items() if k.startswith(_LEARNER)}
    entries = marked or plain
    if "ctx" not in entries:
        some = ", ".join(map(str, list(state)[:5])) or "nothing"
        more = ", ..." if len(state) > 5 else ""
        raise ValueError(f"has no prompts: neither ctx nor {_LEARNER}ctx; it holds {some}{more}")
    # ignoring a trained part would change the classifier: CoCoOp's meta_net, IVLP's VPT
    extra = [k for k in entries if not _READ.fullmatch(k) and not k.startswith(_FROZEN)]
    extra += [k for k in plain if "VPT" in k]
    if extra:
        raise ValueError(
            f"has unsupported trained tensors ({', '.join(extra[:3])}); supported are context, "
            "deep text prompts and their maps to visual prompts (CoOp, AdvPT, APT, MaPLe, FAP)"
        )
    return entries


def _take(entries: Mapping[str, Tensor], key: str) -> Tensor:
    """Check one entry and return it in float32."""
    if key not in entries:
        raise ValueError(f"is incomplete: it has no {key}")
    value = entries[key]
    if value.layout != torch.strided or value.is_meta or not value.is_floating_point():
        raise ValueError(
            f"has a {key} that is {value.dtype}, {value.layout}, {value.device}; must be a dense "
            "tensor of floats"
        )
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError(f"has a {key} larger than its storage; the file is damaged")
    value = value.detach().float().clone(memory_format=torch.contiguous_format)
    if not bool(value.isfinite().all()):
        raise ValueError(f"has values in {key} that are not finite; use an earlier epoch's file")
    return value


def _classes(entries: Mapping[str, Tensor], context: Tensor) -> int | None:
    """Return the number of classes that the prompts were tuned on, None if unknown."""
    own = len(context) if context.ndim == 3 else None
    prefix = entries.get("token_prefix")
    if prefix is None or not prefix.ndim:
        return own
    shapes = f"a ctx {list(context.shape)} and a token_prefix {list(prefix.shape)}"
    if prefix.shape[-1] != context.shape[-1]:
        raise ValueError(f"has {shapes}: their widths differ")
    if own not in (None, len(prefix)):
        raise ValueError(f"has {shapes}: their numbers of classes differ")
    return len(prefix)


def _deep(
    entries: Mapping[str, Tensor], context: Tensor
) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None]:
    """Return deep text prompts and their maps to visual prompts, in MaPLe's layout."""
    names = [k for k in entries if k.startswith(("proj.", _TEXTS, _MAPS))]
    if not names:
        return None, None
    shape = list(context.shape)
    if len(shape) != 2:
        raise ValueError(f"has a ctx of shape {shape}; must be [M, width] if it has {names[0]}")
    found = {int(k.split(".")[1]) for k in names if k.startswith((_TEXTS, _MAPS))}
    deeper = range(len(found))
    if gaps := [i for i in deeper if i not in found]:
        raise ValueError(
            f"has compound prompts up to number {max(found)} but lacks number {gaps[0]}"
        )
    deep = [_take(entries, f"{_TEXTS}.{i}") for i in deeper]
    for i, tokens in enumerate(deep):
        if list(tokens.shape) != shape:
            raise ValueError(
                f"has a {_TEXTS}.{i} of shape {list(tokens.shape)}; must be {shape} like ctx"
            )
    layers = ["proj", *(f"{_MAPS}.{i}" for i in deeper)]
    weights = [_take(entries, f"{name}.weight") for name in layers]
    biases = [_take(entries, f"{name}.bias") for name in layers]
    for name, weight, bias in zip(layers, weights, biases, strict=True):
        _check_map(name, list(weight.shape), list(bias.shape), [biases[0].numel(), shape[1]])
    tokens = torch.stack(deep) if deep else context.new_empty(0, *shape)
    return tokens, (torch.stack(weights), torch.stack(biases))


def _check_map(name: str, weight: list[int], bias: list[int], wanted: list[int]) -> None:
    """Raise unless a map has the shape ``wanted``, [image width, text width]."""
    if weight == wanted and bias == wanted[:1]:
        return
    turned = len(weight) == 2 and weight[0] == wanted[1] != weight[1]
    raise ValueError(
        f"has a {name} with weight {weight} and bias {bias}; the weight must be {wanted} (image "
        f"width, text width) and the bias {wanted[:1]}"
        + ("; the weight is transposed, or maps image to text" if turned else "")
    )
