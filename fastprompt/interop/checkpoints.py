"""Prompts out of other code's checkpoints: CoOp, AdvPT, APT, MaPLe and FAP, as Dassl saves them.

Such a file is ``{"state_dict": ..., "epoch": ..., "optimizer": ..., "scheduler": ...,
"val_result": ...}``, pickled; see `_utils.unpickling` for how it is read without running any of it.
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
# the model's own weights, and buffers made of them
_FROZEN = ("token_", "ZS_", "image_encoder.", "text_encoder.", "logit_scale")


@dataclass(frozen=True, eq=False)
class ForeignPrompts:
    """The prompts of a checkpoint, float32.

    Attributes:
        context: tokens of the first layer, ``[M, text_width]``, or ``[C, M, text_width]`` where
            each class has its own.
        deep: what replaces them in layers 1, 2, ... of the text tower, ``[depth - 1, M,
            text_width]``; None without visual prompts.
        maps: from text to visual prompts in each layer, weight ``[depth, image_width, text_width]``
            and bias ``[depth, image_width]``; None likewise.
        classes: C of the data they were tuned on, where the file tells.
        epoch: epochs they were tuned for, where the file tells.
    """

    context: Tensor
    deep: Tensor | None = None
    maps: tuple[Tensor, Tensor] | None = None
    classes: int | None = None
    epoch: int | None = None

    @property
    def kind(self) -> Kind:
        """What kind of prompts these are."""
        if self.maps is not None:
            return "multi-modal"
        return "context" if self.context.ndim == 2 else "class-specific context"

    @property
    def depth(self) -> int:
        """Layers with prompts of their own."""
        return 1 if self.deep is None else len(self.deep) + 1

    @property
    def text_width(self) -> int:
        """Width of the text tower that they are for."""
        return self.context.shape[-1]

    @property
    def image_width(self) -> int | None:
        """Width of the image tower that they are for; None without visual prompts."""
        return None if self.maps is None else self.maps[1].shape[1]

    def state(self) -> dict[str, Tensor]:
        """The state dict of `TextContext`, or of `DeepPrompts`."""
        if self.maps is None or self.deep is None:
            return {"tokens": self.context}
        weight, bias = self.maps
        tokens = torch.cat([self.context[None], self.deep])  # [depth, M, W]
        return {"tokens": tokens, "map_weight": weight, "map_bias": bias[:, None]}


# ---- reading -----------------------------------------------------------------------------------


def read_prompts(path: str | Path) -> ForeignPrompts:
    """The prompts in a checkpoint of CoOp, AdvPT, APT, MaPLe or FAP, or code built on these.

    The file does not say where the class name stood: it is taken to stand at the end, the default
    of all of them.

    Args:
        path: such as ``prompt_learner/model.pth.tar-50``; nothing in it is run.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint, one with objects of other classes, without prompts, with
            more than prompts, or with prompts that are incomplete, not finite or don't match.
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
        raise ValueError(f"has a {type(state).__name__} for its state_dict, not a mapping")
    entries = _entries(state)
    context = _take(entries, "ctx")
    if context.ndim not in (2, 3) or 0 in context.shape:
        raise ValueError(
            f"has a ctx {list(context.shape)}: must be [M, width] or [classes, M, width]"
        )
    deep, maps = _deep(entries, context)
    epochs = epoch if type(epoch) is int else None
    return ForeignPrompts(context, deep, maps, _classes(entries, context), epochs)


def _entries(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The prompt learner's tensors under their own names, whatever they were saved through."""
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
        raise ValueError(f"holds no prompts: it has no ctx or {_LEARNER}ctx, but {some}{more}")
    # a part that is left out would change what the prompts do: CoCoOp's meta_net, IVLP's VPT
    extra = [k for k in entries if not _READ.fullmatch(k) and not k.startswith(_FROZEN)]
    extra += [k for k in plain if "VPT" in k]
    if extra:
        raise ValueError(
            f"has learned more than is read here ({', '.join(extra[:3])}): context, deep text "
            "prompts and their maps to visual ones (CoOp, AdvPT, APT, MaPLe, FAP)"
        )
    return entries


def _take(entries: Mapping[str, Tensor], key: str) -> Tensor:
    """One entry, checked and in float32."""
    if key not in entries:
        raise ValueError(f"is incomplete: it has no {key}")
    value = entries[key]
    if value.layout != torch.strided or value.is_meta or not value.is_floating_point():
        raise ValueError(
            f"has a {key} that is {value.dtype}, {value.layout}, {value.device}: must be a dense "
            "tensor of floats"
        )
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError(f"has a {key} that claims more numbers than it holds: damaged")
    value = value.detach().float().clone(memory_format=torch.contiguous_format)
    if not bool(value.isfinite().all()):
        raise ValueError(f"has values in {key} that are not finite: take an earlier epoch's file")
    return value


def _classes(entries: Mapping[str, Tensor], context: Tensor) -> int | None:
    """How many classes the prompts were tuned for."""
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
    """Deep text prompts and the maps to the visual ones, of MaPLe's layout."""
    names = [k for k in entries if k.startswith(("proj.", _TEXTS, _MAPS))]
    if not names:
        return None, None
    shape = list(context.shape)
    if len(shape) != 2:
        raise ValueError(f"has a ctx {shape}: must be [M, width] beside {names[0]}")
    found = {int(k.split(".")[1]) for k in names if k.startswith((_TEXTS, _MAPS))}
    deeper = range(len(found))
    if gaps := [i for i in deeper if i not in found]:
        raise ValueError(f"has compound prompts up to number {max(found)}, but no number {gaps[0]}")
    deep = [_take(entries, f"{_TEXTS}.{i}") for i in deeper]
    for i, tokens in enumerate(deep):
        if list(tokens.shape) != shape:
            raise ValueError(f"has a {_TEXTS}.{i} {list(tokens.shape)}: must be {shape} as ctx")
    layers = ["proj", *(f"{_MAPS}.{i}" for i in deeper)]
    weights = [_take(entries, f"{name}.weight") for name in layers]
    biases = [_take(entries, f"{name}.bias") for name in layers]
    for name, weight, bias in zip(layers, weights, biases, strict=True):
        _check_map(name, list(weight.shape), list(bias.shape), [biases[0].numel(), shape[1]])
    tokens = torch.stack(deep) if deep else context.new_empty(0, *shape)
    return tokens, (torch.stack(weights), torch.stack(biases))


def _check_map(name: str, weight: list[int], bias: list[int], wanted: list[int]) -> None:
    """Raise unless a map takes text prompts to the image width: ``wanted`` is both widths."""
    if weight == wanted and bias == wanted[:1]:
        return
    turned = len(weight) == 2 and weight[0] == wanted[1] != weight[1]
    raise ValueError(
        f"has a {name} with weight {weight} and bias {bias}: must be [image width, text width], "
        f"here {wanted}, and {wanted[:1]}"
        + ("; the weight is transposed, or maps the other way" if turned else "")
    )


# ---- into a tuner ------------------------------------------------------------------------------
