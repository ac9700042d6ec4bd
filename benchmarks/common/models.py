"""Models with random weights and realistic class names."""

import copy
import functools
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import open_clip
import torch

from fastprompt import FrozenCLIP, load_clip

from .dry_run import DRY_RUN

MOST_WORDS = 4
TWO_LAYERS: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 48, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
BUNDLED = ("tiny-shapes", "tiny-shapes-robust")


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings: open_clip warns about random weights, which are intended here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def random_clip(name: str = "ViT-B-32", seed: int = 0) -> FrozenCLIP:
    """Create an open_clip model with random weights in float32; in a dry run, `two_layer_clip`."""
    if DRY_RUN:
        return two_layer_clip(seed)
    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return load_clip(open_clip.create_model(name).eval())


def two_layer_clip(seed: int = 0) -> FrozenCLIP:
    """Create a small model with random weights in float32, on which a step takes milliseconds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return load_clip(open_clip.CLIP(**TWO_LAYERS).eval())


def shared_clip(name: str, device: str, double: bool = False) -> FrozenCLIP:
    """Return a bundled or random model, created once per process; callers must not modify it."""
    return _shared_clip(name, device, double)


# wrapped: the cache would treat positional and keyword arguments as different calls
@functools.cache
def _shared_clip(name: str, device: str, double: bool) -> FrozenCLIP:
    if double:
        return load_clip(copy.deepcopy(shared_clip(name, device).model).double())
    return (load_clip(name) if name in BUNDLED else random_clip(name)).to(device)


def imagenet_names() -> list[str]:
    """Return ImageNet's distinct class names of 1 to 4 words, in ImageNet's order."""
    names = dict.fromkeys(open_clip.IMAGENET_CLASSNAMES)
    return [name for name in names if 1 <= len(name.split()) <= MOST_WORDS]


def class_names(n: int) -> list[str]:
    """Return ``n`` distinct names of 1 to 4 words: ImageNet's first ``n``, or composed names."""
    names = imagenet_names()
    return names[:n] if n <= len(names) else composed_names(n)


def composed_names(n: int, seed: int = 0) -> list[str]:
    """Compose ``n`` distinct names of 1 to 4 random words from ImageNet's class names."""
    words = list(dict.fromkeys(w for name in imagenet_names() for w in name.split()))
    draw = random.Random(seed)
    names: dict[str, None] = {}
    while len(names) < n:
        # duplicates are drawn again: one-word names run out first
        names[" ".join(draw.choices(words, k=draw.randint(1, MOST_WORDS)))] = None
    return list(names)
