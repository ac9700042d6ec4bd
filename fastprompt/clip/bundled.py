"""The small CLIP models bundled with the package."""

import copy
import hashlib
import json
from functools import cache
from importlib import resources
from typing import Any

import open_clip
from open_clip.model import resize_pos_embed
from safetensors.torch import load as parse_safetensors
from torch import nn

DEFAULT = "tiny-photos"


@cache
def _card(name: str) -> dict[str, Any]:
    text = resources.files("fastprompt.assets").joinpath(f"{name}.json").read_text("utf-8")
    return dict(json.loads(text))


def names() -> list[str]:
    """Return the names of the bundled models."""
    files = resources.files("fastprompt.assets").iterdir()
    return sorted(f.name.removesuffix(".json") for f in files if f.name.endswith(".json"))


def card(name: str) -> dict[str, Any]:
    """Return a model's configuration, training command, seed and measured accuracies."""
    return copy.deepcopy(_card(name))


def load(name: str, image_size: int | tuple[int, int] | None = None) -> nn.Module:
    """Load a bundled model as an open_clip ``CLIP`` with float32 weights."""
    facts = card(name)
    if image_size is not None:
        facts["config"]["vision_cfg"]["image_size"] = image_size
    model = open_clip.CLIP(**facts["config"])
    state = {}
    for file in facts["weights"]:  # the robust model replaces only the image encoder
        data = resources.files("fastprompt.assets").joinpath(file).read_bytes()
        if hashlib.sha256(data).hexdigest() != facts["sha256"][file]:
            raise ValueError(f"{name}: {file} is damaged; reinstall fastprompt")
        state.update({k: v.float() for k, v in parse_safetensors(data).items()})
    resize_pos_embed(state, model)
    model.load_state_dict(state)
    model.visual.image_mean, model.visual.image_std = tuple(facts["mean"]), tuple(facts["std"])
    return model
