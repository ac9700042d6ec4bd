"""Load weights of the image encoder alone, such as adversarially fine-tuned encoders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from open_clip.model import resize_pos_embed
from torch import Tensor, nn

from .._utils.unpickling import read_checkpoint

# keys of published checkpoints of adversarially fine-tuned image encoders: TeCoA's training code,
# then the plain layouts of FARE and others
_IMAGE_CONTAINERS = ("vision_encoder_state_dict", "state_dict", "model_state_dict", "model")
_WRAPPERS = ("module.", "model.", "clip_model.")
_TOWER_PREFIXES = ("visual.", "image_encoder.")


def load_image_weights(
    model: nn.Module, weights: str | Path | Mapping[str, Any], *, resize: bool = False
) -> None:
    """Load image encoder weights into ``model.visual``.

    Args:
        model: an open_clip model, modified in place.
        weights: a file (safetensors, or torch format with tensors only) or a mapping: either the
            encoder's state dict or a checkpoint that contains it. Common key prefixes are removed.
        resize: interpolate position embeddings of another image size.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged or contains pickled code, or the weights belong to another
            image encoder.
    """
    where, content = "image_weights", weights
    if isinstance(content, (str, Path)):
        where, content = (
            f"image_weights: {content}",
            read_checkpoint(Path(content), name="image_weights"),
        )
    if not isinstance(content, Mapping):
        raise TypeError(
            f"image_weights must be a path or a state dict, got {type(content).__name__}"
        )
    for key in _IMAGE_CONTAINERS:
        if isinstance(content.get(key), Mapping):
            content = dict(content[key])
            break
    visual: Any = model.visual
    wanted = visual.state_dict()
    found = {k: v for k, v in _tower_entries(content).items() if isinstance(v, Tensor)}
    missing = sorted(set(wanted) - set(found))
    if missing:
        raise ValueError(
            f"{where} does not fit {type(visual).__name__}: {len(missing)} of {len(wanted)} "
            f"tensors are missing, for example {missing[0]}"
        )
    parts = {key.split(".")[0] for key in wanted}
    extra = sorted(k for k in found if k not in wanted and k.split(".")[0] in parts)
    if extra:
        raise ValueError(
            f"{where} is for another image encoder: {len(extra)} of its tensors are not in this "
            f"model, for example {extra[0]}"
        )
    if resize:
        named = {f"visual.{k}": v for k, v in found.items()}
        resize_pos_embed(named, model)
        found = {k.removeprefix("visual."): v for k, v in named.items()}
    wrong = [k for k in wanted if found[k].shape != wanted[k].shape]
    if wrong:
        raise ValueError(
            f"{where} is for another image encoder: {wrong[0]} has shape "
            f"{list(found[wrong[0]].shape)}, but this model needs {list(wanted[wrong[0]].shape)}"
        )
    for key in wanted:
        value = found[key]
        kind = value.dtype.is_floating_point == wanted[key].dtype.is_floating_point
        if not kind or value.layout != torch.strided or value.is_meta:
            raise ValueError(
                f"{where} has a {key} that is {value.dtype}, {value.layout}, {value.device}; must "
                "be a dense tensor of floats"
            )
        if not bool(value.isfinite().all()):
            raise ValueError(f"{where} has values in {key} that are not finite; use another file")
    visual.load_state_dict({k: found[k] for k in wanted})


def _tower_entries(content: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the image encoder's entries, with wrapper prefixes removed from their keys.

    In a checkpoint of a whole CLIP, the text encoder uses some of the same names without a prefix,
    so if any key has an image encoder prefix, only those entries are returned.
    """
    plain = {}
    for key, value in content.items():
        if not isinstance(key, str):
            continue  # no state dict has other keys: the entry is not a tensor of the encoder
        while wrapper := next((w for w in _WRAPPERS if key.startswith(w)), None):
            key = key.removeprefix(wrapper)
        plain[key] = value
    marked = {
        key.removeprefix(prefix): value
        for key, value in plain.items()
        for prefix in _TOWER_PREFIXES
        if key.startswith(prefix)
    }
    return marked or plain
