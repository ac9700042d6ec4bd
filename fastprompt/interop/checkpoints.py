"""Read prompts from Dassl checkpoints of CoOp, AdvPT, APT, MaPLe, FAP and NAP.

Such a file is a pickled ``{"state_dict": ..., "epoch": ..., "optimizer": ..., "scheduler": ...,
"val_result": ...}``; `_utils.unpickling` reads it without executing code from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .._utils.checks import check_path
from .._utils.unpickling import read_checkpoint
from ..prompts.deep import Coupling

Kind = Literal["context", "class-specific context", "multi-modal"]
LinearMaps = tuple[Tensor, Tensor]  # weights [N, to, from] and biases [N, to]


_LEARNER = "prompt_learner."
_WRAPPER = "module."  # torch's DataParallel
_TEXTS, _IMAGES = "compound_prompts_text", "compound_prompts_image"
_MAPS = "compound_prompt_projections"
_READ = re.compile(
    rf"ctx|token_prefix|token_suffix|proj\.(weight|bias)|({_TEXTS}|{_IMAGES})\.\d+"
    rf"|{_MAPS}\.\d+\.(weight|bias)"
)
# frozen weights beside the prompt learner: of the model itself, and of a zero-shot CLIP
_TRANSFORMER = r"transformer\.resblocks\.\d+\.(attn|ln_1|ln_2|mlp)\..*"
_RESNET = r"(conv|bn)\d\..*|layer\d\..*|attnpool\..*"
_FROZEN = re.compile(
    rf"logit_scale|dtype|(ZS_\w*|vanilla_model)\..*|ZS_\w*"
    rf"|image_encoder\.({_TRANSFORMER}|{_RESNET}|class_embedding|positional_embedding|proj"
    r"|ln_(pre|post)\..*)"
    rf"|text_encoder\.({_TRANSFORMER}|positional_embedding|ln_final\..*|text_projection"
    r"|token_embedding\..*)"
)
# NAP's refiners; its code also creates them in the text encoder, and does not use them there
_REFINER = re.compile(
    r"(?P<encoder>image|text)_encoder\.transformer\.resblocks\.(?P<block>\d+)\.token_refiner\."
    r"refiner\.(?P<layer>0|2)\.(?P<part>weight|bias)"
)


_LINEARS = ("first.weight", "first.bias", "second.weight", "second.bias")


@dataclass(frozen=True, eq=False)
class ForeignPrompts:
    """Prompts of a checkpoint, in float32.

    Attributes:
        context: context tokens of the first layer, ``[M, text_width]``, or ``[C, M, text_width]``
            if they are class-specific.
        deep: trainable tokens of layers 1, 2, ..., ``[depth - 1, M, width]``: of the text encoder,
            or of the image encoder with ``coupling="image-to-text"``; None without visual prompts.
        maps: linear maps from text to visual prompts, one for each layer (with
            ``coupling="image-to-text"``, of the first layer); None without visual prompts.
        back: linear maps from visual to text prompts of layers 1, 2, ..., with
            ``coupling="image-to-text"``.
        coupling: direction of the maps in layers 1, 2, ....
        refiners: state dicts of the token refiners of image blocks 1 to ``depth - 1`` (NAP).
        suffix: token embeddings after the context, ``[C, T, text_width]``, in the dtype of the
            file; None if the file does not have them.
        frozen: the file's frozen weights of the model, by their names in the file.
        classes: number C of classes they were tuned on; None if the file does not record it.
        epoch: number of epochs they were tuned for; None if the file does not record it.
    """

    context: Tensor
    deep: Tensor | None = None
    maps: LinearMaps | None = None
    back: LinearMaps | None = None
    coupling: Coupling = "text-to-image"
    refiners: tuple[Mapping[str, Tensor], ...] = ()
    suffix: Tensor | None = None
    frozen: Mapping[str, Tensor] = field(default_factory=dict)
    classes: int | None = None
    epoch: int | None = None

    @property
    def kind(self) -> Kind:
        """Kind of the prompts."""
        if self.maps is not None:
            return "multi-modal"
        return "context" if self.context.ndim == 2 else "class-specific context"

    @property
    def layout(self) -> str:
        """Code whose layout the checkpoint has."""
        if self.maps is None:
            return "CoOp (also AdvPT and APT)"
        if self.refiners:
            return "NAP"
        if self.back is not None:
            return "FAP"
        return "MaPLe" if self.depth > 1 else "MaPLe or FAP with depth 1"

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
        state = {"tokens": self.context[None], **_named("map", self.maps)}
        if self.back is not None:
            state |= {"image_tokens": self.deep, **_named("back", self.back)}
        else:
            state["tokens"] = torch.cat([state["tokens"], self.deep])  # [depth, M, W]
        for i, refiner in enumerate(self.refiners):
            state |= {f"refiners.{i}.{name}": value for name, value in refiner.items()}
        return state


def _named(name: str, maps: LinearMaps) -> dict[str, Tensor]:
    weight, bias = maps
    return {f"{name}_weight": weight, f"{name}_bias": bias[:, None]}


# ---- reading -----------------------------------------------------------------------------------


def read_prompts(path: str | Path) -> ForeignPrompts:
    """Read the prompts from a checkpoint of CoOp, AdvPT, APT, MaPLe, FAP or NAP.

    Args:
        path: the file, such as ``prompt_learner/model.pth.tar-50``; no code in it is executed.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a checkpoint, has objects of unknown classes, no prompts or
            unsupported trained tensors, or its prompts are incomplete, not finite or inconsistent.
    """
    path = check_path(path, "path")
    content = read_checkpoint(path, name="path")
    try:
        return _prompts(content)
    except ValueError as error:
        raise ValueError(f"path: {path} {error}") from None


def _prompts(content: Mapping[Any, Any]) -> ForeignPrompts:
    state, epoch = content.get("state_dict", content), content.get("epoch")
    if not isinstance(state, Mapping):
        raise ValueError(f"has a {type(state).__name__} as its state_dict, not a mapping")
    entries, others = _entries(state)
    context = _take(entries, "ctx")
    if context.ndim not in (2, 3) or 0 in context.shape:
        raise ValueError(
            f"has a ctx of shape {list(context.shape)}; must be [M, width] or [classes, M, width]"
        )
    deep = _deep(entries, context)
    return ForeignPrompts(
        context,
        **deep,
        refiners=_refiners(others, *deep["maps"][1].shape) if deep else (),
        suffix=_suffix(entries, context),
        frozen={
            key: value
            for key, value in others.items()
            if key.startswith(("image_encoder.", "text_encoder.", "logit_scale"))
            and not _REFINER.fullmatch(key)
        },
        classes=_classes(entries, context),
        epoch=epoch if type(epoch) is int else None,
    )


def _entries(state: Mapping[Any, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the prompt learner's tensors, and the others, without prefixes of wrapping modules."""
    plain = {
        key.removeprefix(_WRAPPER): value
        for key, value in state.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    marked = {k.removeprefix(_LEARNER): v for k, v in plain.items() if k.startswith(_LEARNER)}
    entries = marked or {k: v for k, v in plain.items() if _READ.fullmatch(k)}
    if "ctx" not in entries:
        some = ", ".join(map(str, list(state)[:5])) or "nothing"
        more = ", ..." if len(state) > 5 else ""
        raise ValueError(f"has no prompts: neither ctx nor {_LEARNER}ctx; it holds {some}{more}")
    own = {f"{_LEARNER}{k}" for k in marked} or entries.keys()
    others = {k: v for k, v in plain.items() if k not in own}
    # ignoring a trained part would change the classifier: CoCoOp's meta_net, IVLP's VPT
    extra = [k for k in entries if not _READ.fullmatch(k) and not k.startswith("ZS_")]
    extra += [k for k in others if not _FROZEN.fullmatch(k) and not _REFINER.fullmatch(k)]
    if extra:
        raise ValueError(
            f"has unsupported trained tensors ({', '.join(extra[:3])}); supported are context, "
            "deep text or visual prompts, their maps, and NAP's token refiners (CoOp, AdvPT, APT, "
            "MaPLe, FAP, NAP)"
        )
    return entries, others


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


def _suffix(entries: Mapping[str, Tensor], context: Tensor) -> Tensor | None:
    """Return the token embeddings after the context, in the dtype of the file."""
    if "token_suffix" not in entries:
        return None
    _take(entries, "token_suffix")  # checks it
    suffix = entries["token_suffix"].detach().contiguous()
    classes = _classes(entries, context) or len(suffix)
    shape = [classes, suffix.shape[1] if suffix.ndim > 1 else 0, context.shape[-1]]
    if list(suffix.shape) != shape or not shape[1]:
        raise ValueError(
            f"has a token_suffix of shape {list(suffix.shape)}; must be [{classes}, tokens, "
            f"{context.shape[-1]}]"
        )
    return suffix


def _refiners(
    others: Mapping[str, Tensor], depth: int, width: int
) -> tuple[dict[str, Tensor], ...]:
    """Return the state dicts of NAP's refiners, one for each image block with deep prompts.

    The authors' code also creates refiners in the other blocks, and does not use them.
    """
    found: dict[int, dict[str, Tensor]] = {}
    for key in others:
        match = _REFINER.fullmatch(key)
        if match and match["encoder"] == "image":
            layer = "first" if match["layer"] == "0" else "second"
            own = found.setdefault(int(match["block"]), {})
            own[f"{layer}.{match['part']}"] = _take(others, key)
    used = range(1, depth) if found else ()
    for block in used:
        own = found.get(block, {})
        if lacks := [name for name in _LINEARS if name not in own]:
            raise ValueError(f"is incomplete: block {block} has a token refiner without {lacks[0]}")
        shapes = [list(own[name].shape) for name in _LINEARS]
        if shapes != (wanted := [[2 * width, width], [2 * width], [width, 2 * width], [width]]):
            raise ValueError(
                f"has a token refiner in block {block} of shapes {shapes}; must be {wanted}, two "
                f"linear layers with a hidden width of twice the token width {width}"
            )
    return tuple(found[block] for block in used)


def _deep(entries: Mapping[str, Tensor], context: Tensor) -> dict[str, Any]:
    """Return the fields of deep prompts and their maps, in the layout of MaPLe or FAP."""
    names = [k for k in entries if k.startswith(("proj.", _TEXTS, _IMAGES, _MAPS))]
    if not names:
        return {}
    shape = list(context.shape)
    if len(shape) != 2:
        raise ValueError(f"has a ctx of shape {shape}; must be [M, width] if it has {names[0]}")
    reverse = any(k.startswith(_IMAGES) for k in names)
    if reverse and any(k.startswith(_TEXTS) for k in names):
        raise ValueError(f"has both {_TEXTS} and {_IMAGES}, which no supported code has")
    found = {int(k.split(".")[1]) for k in names if not k.startswith("proj.")}
    deeper = range(len(found))
    if gaps := [i for i in deeper if i not in found]:
        raise ValueError(
            f"has compound prompts up to number {max(found)} but lacks number {gaps[0]}"
        )
    first = _linear(entries, "proj", shape[1], None)
    image_width = len(first[1])
    prompts, width = (_IMAGES, image_width) if reverse else (_TEXTS, shape[1])
    deep = [_take(entries, f"{prompts}.{i}") for i in deeper]
    for i, tokens in enumerate(deep):
        if list(tokens.shape) != [shape[0], width]:
            raise ValueError(
                f"has a {prompts}.{i} of shape {list(tokens.shape)}; must be "
                f"{[shape[0], width]} as ctx and proj require"
            )
    to = shape[1] if reverse else image_width
    later = [_linear(entries, f"{_MAPS}.{i}", width, to) for i in deeper]
    tokens = torch.stack(deep) if deep else context.new_empty(0, *shape)
    if reverse:
        return {
            "deep": tokens,
            "maps": _stacked([first]),
            "back": _stacked(later),
            "coupling": "image-to-text",
        }
    return {"deep": tokens, "maps": _stacked([first, *later])}


def _stacked(maps: list[LinearMaps]) -> LinearMaps:
    weights, biases = zip(*maps, strict=True)
    return torch.stack(weights), torch.stack(biases)


def _linear(entries: Mapping[str, Tensor], name: str, width: int, to: int | None) -> LinearMaps:
    """Return the weight ``[to, width]`` and the bias ``[to]`` of a map; by default any ``to``."""
    weight, bias = _take(entries, f"{name}.weight"), _take(entries, f"{name}.bias")
    wanted = [bias.numel() if to is None else to, width]
    if list(weight.shape) == wanted and list(bias.shape) == wanted[:1]:
        return weight, bias
    turned = weight.ndim == 2 and weight.shape[0] == width != weight.shape[1]
    raise ValueError(
        f"has a {name} with weight {list(weight.shape)} and bias {list(bias.shape)}; the weight "
        f"must be {wanted} (output width, input width) and the bias {wanted[:1]}"
        + ("; the weight is transposed" if turned else "")
    )
