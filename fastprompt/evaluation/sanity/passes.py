"""Passes through a checked model: they are counted, and their random numbers may be fixed."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from ..._utils.types import Model


class Meter:
    """Counts the images in forward and in backward passes.

    Args:
        tell: called with the number of passes after each forward pass, such as by a progress bar.
    """

    def __init__(self, tell: Callable[[int], None] | None = None) -> None:
        self.forwards = self.gradients = 0
        self._tell = tell

    @property
    def passes(self) -> int:
        """Forward and backward passes together, in images."""
        return self.forwards + self.gradients

    def forward(self, images: int) -> None:
        """Count a forward pass over ``images`` images."""
        self.forwards += images
        if self._tell is not None:
            self._tell(self.passes)

    def backward(self, grad: Tensor) -> None:
        """Count a backward pass; a hook of the logits."""
        self.gradients += len(grad)


class Passes(nn.Module):
    """A model whose passes are counted.

    Args:
        draw: seeds the random numbers of every pass, so that equal batches give equal logits; None
            leaves them free.
    """

    def __init__(self, model: Model, meter: Meter, draw: int | None) -> None:
        super().__init__()
        self.model, self.meter, self.draw = model, meter, draw

    def forward(self, images: Tensor) -> Tensor:
        if self.draw is None:
            logits = self.model(images)
        else:
            with _seeded(self.draw, images.device):
                logits = self.model(images)
        self.meter.forward(len(images))
        if logits.requires_grad:
            logits.register_hook(self.meter.backward)
        return logits


@contextmanager
def _seeded(draw: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators of torch, numpy and Python; restore them on exit."""
    # a model may draw from any of the three
    others = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(draw)
            np.random.seed(draw)  # noqa: NPY002
            random.seed(draw)
            yield
    finally:
        np.random.set_state(others[0])  # noqa: NPY002
        random.setstate(others[1])
