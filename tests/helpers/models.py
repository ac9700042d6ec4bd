"""Small CLIPs with random weights."""

import copy
from functools import cache

import open_clip
import torch

from fastprompt import FrozenCLIP, load_clip

SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 48, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 24,
        "heads": 2,
        "layers": 2,
    },
}


def small_model(
    layout: type = open_clip.CLIP, seed: int = 0, image_size: int = 48, **text: object
) -> torch.nn.Module:
    """A random open_clip model of a layout; ``text`` changes the text tower's settings."""
    config = copy.deepcopy(SMALL)
    config["text_cfg"] |= text
    config["vision_cfg"]["image_size"] = image_size
    torch.manual_seed(seed)
    return layout(**config).eval()


@cache
def resnet() -> FrozenCLIP:
    """A CLIP whose image tower takes no prompts."""
    config = copy.deepcopy(SMALL)
    config["vision_cfg"] = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}
    torch.manual_seed(0)
    return load_clip(open_clip.CLIP(**config).eval())
