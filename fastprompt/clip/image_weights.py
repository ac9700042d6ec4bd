"""Weights for the image tower alone, as adversarially fine-tuned towers are published."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .._utils.unpickling import read_checkpoint

# where published checkpoints of adversarially fine-tuned image towers keep their weights: TeCoA's
# training code, then the plain layouts that FARE and others use
_IMAGE_CONTAINERS = ("vision_encoder_state_dict", "state_dict", "model_state_dict", "model")
_WRAPPERS = ("module.", "model.", "clip_model.")
_TOWER_PREFIXES = ("visual.", "image_encoder.")


def load_image_weights(model: nn.Module, weights: str | Path | Mapping[str, Any]) -> None:
    """Put an image tower's weights into ``model.visual``.

    Args:
        model: an open_clip model; changed.
        weights: a file (safetensors, or torch's with tensors only) or a mapping: the tower's state
            dict itself, or a checkpoint that holds one, with the usual prefixes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged or pickled code, or weights of another tower.
    """
    where, content = "image_weights", weights
    if isinstance(content, (str, Path)):
        where, content = str(content), read_checkpoint(Path(content), name="image_weights")
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
            f"tensors are missing, {missing[0]} among them"
        )
    parts = {key.split(".")[0] for key in wanted}
    extra = sorted(k for k in found if k not in wanted and k.split(".")[0] in parts)
    if extra:
        raise ValueError(
            f"{where} is for another image tower: this model has no {extra[0]} ({len(extra)} more)"
        )
    wrong = [k for k in wanted if found[k].shape != wanted[k].shape]
    if wrong:
        raise ValueError(
            f"{where} is for another image tower: {wrong[0]} is {list(found[wrong[0]].shape)}, "
            f"this model has {list(wanted[wrong[0]].shape)}"
        )
    visual.load_state_dict({k: found[k] for k in wanted})


def _tower_entries(content: Mapping[str, Any]) -> dict[str, Any]:
    """The image tower's entries under its own names, whatever they were saved through.

    A whole CLIP's text tower has the image tower's names, too, without the prefix: where any entry
    is marked as the image tower's, only such entries count.
    """
    plain = {}
    for key, value in content.items():
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
