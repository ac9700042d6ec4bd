"""Adversarial images that several models share, crafted once."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._utils.memory import total_memory
from ..attacks import AttackResult

_SHARE = 8  # the images may use 1 / _SHARE of the device's memory; others are crafted again


class Window(NamedTuple):
    """A window of adversarial images, their labels, and the passes that crafting them took."""

    result: AttackResult
    labels: Tensor
    passes: Mapping[str, int]


class Shared:
    """Which images to craft where models share them.

    The feature attack uses neither prompts nor labels, so models with the same image encoder get
    the same images. They are crafted for all images that any of these models classifies correctly,
    so that they depend neither on the order of the models nor on where an evaluation resumes.

    Attributes:
        places: positions of the images to craft, by the encoder that they depend on.
        models: number of the models with each encoder.
    """

    def __init__(self) -> None:
        self.places: dict[Hashable, Sequence[int]] = {}
        self.models: dict[Hashable, int] = {}

    def add(self, made_on: Hashable, places: Sequence[int]) -> None:
        """Add the images that a further model with this encoder classifies correctly."""
        self.models[made_on] = self.models.get(made_on, 0) + 1
        self.places[made_on] = sorted({*self.places.get(made_on, ()), *places})


class Crafted:
    """Windows of adversarial images by what they depend on, kept for further models.

    Args:
        device: the device of the images.
    """

    def __init__(self, device: torch.device) -> None:
        self._windows: dict[Hashable, Window] = {}
        self._left = total_memory(device) // _SHARE

    def get(self, key: Hashable, craft: Callable[[], Window]) -> Window:
        """Return the window ``key``, crafted unless it is kept."""
        if key in self._windows:
            return self._windows[key]
        window = craft()
        size = window.result.images.nbytes
        if size <= self._left:
            self._left -= size
            self._windows[key] = window
        return window
