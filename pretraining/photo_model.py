"""The model of the photographs, and its zero-shot accuracy while it is trained."""

from collections.abc import Sequence
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from .photo_data import SIZE, Pictures
from .training import encode_short_text

CONFIG: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {
        "image_size": SIZE,
        "patch_size": 8,
        "width": 256,
        "layers": 6,
        "head_width": 64,
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 96,
        "heads": 3,
        "layers": 4,
        "mlp_ratio": 3.0,  # the whole model takes less than 20 MB in float16
    },
}
MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)
TEMPLATE = "a photo of a {}."


def make_model(patch_dropout: float) -> Any:
    """Return a new model that drops patches while it is trained (FLIP, Li et al., CVPR 2023)."""
    vision = CONFIG["vision_cfg"] | {"patch_dropout": patch_dropout}
    return open_clip.CLIP(**CONFIG | {"vision_cfg": vision})


def image_features(model: Any, pixels: Tensor) -> Tensor:
    """Return normalized features of images in [0, 1]; the image tower runs in bfloat16."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        features = model.encode_image((pixels - mean) / std)
    return F.normalize(features.float(), dim=-1)


def text_features(model: Any, texts: Sequence[str]) -> Tensor:
    """Return normalized features of short texts; the text tower runs in bfloat16."""
    tokens = open_clip.tokenize(list(texts))
    with torch.autocast("cpu", torch.bfloat16):
        features = encode_short_text(model, tokens)
    return F.normalize(features.float(), dim=-1)


@torch.no_grad()
def zero_shot_accuracy(model: Any, pictures: Pictures, names: Sequence[str]) -> float:
    """Return the share of pictures whose label has the nearest prompt; restores the mode."""
    mode = model.training
    model.eval()
    prompts = text_features(model, [TEMPLATE.format(name) for name in names])
    right = [
        (image_features(model, x / 255) @ prompts.T).argmax(1) == y
        for x, y in zip(pictures.pixels.split(250), pictures.labels.split(250), strict=True)
    ]
    model.train(mode)
    return torch.cat(right).float().mean().item()
