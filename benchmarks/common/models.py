"""What is measured: models with random weights, and class names as they are in real use."""

import copy
import functools
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager

import open_clip
import torch

from fastprompt import FrozenCLIP, load_clip

MOST_WORDS = 4
BUNDLED = ("tiny-shapes", "tiny-shapes-robust")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings: open_clip warns of random weights, which are wanted here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def random_clip(name: str = "ViT-B-32", seed: int = 0) -> FrozenCLIP:
    """An open_clip model with random weights, float32."""
    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return load_clip(open_clip.create_model(name).eval())


def shared_clip(name: str, device: str, double: bool = False) -> FrozenCLIP:
    """A bundled model, or one with random weights, made once in a process: nobody may change it."""
    return _shared_clip(name, device, double)


@functools.cache  # behind a function: it takes one call, spelled in two ways, for two
def _shared_clip(name: str, device: str, double: bool) -> FrozenCLIP:
    if double:
        return load_clip(copy.deepcopy(shared_clip(name, device).model).double())
    return (load_clip(name) if name in BUNDLED else random_clip(name)).to(device)


def imagenet_names() -> list[str]:
    """ImageNet's class names of 1 to 4 words, distinct, in ImageNet's order."""
    names = dict.fromkeys(open_clip.IMAGENET_CLASSNAMES)
    return [name for name in names if 1 <= len(name.split()) <= MOST_WORDS]


def class_names(n: int) -> list[str]:
    """``n`` distinct names of 1 to 4 words: ImageNet's first ones, or that many composed ones."""
    names = imagenet_names()
    return names[:n] if n <= len(names) else composed_names(n)


def composed_names(n: int, seed: int = 0) -> list[str]:
    """``n`` distinct names of 1 to 4 random words of ImageNet's names."""
    words = list(dict.fromkeys(w for name in imagenet_names() for w in name.split()))
    draw = random.Random(seed)
    names: dict[str, None] = {}
    while len(names) < n:
        # a name that is there already is drawn again: one-word names run out first
        names[" ".join(draw.choices(words, k=draw.randint(1, MOST_WORDS)))] = None
    return list(names)
