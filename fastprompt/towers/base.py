"""What holds a frozen model without owning it."""

from __future__ import annotations

import torch
from torch import nn

from ..clip.frozen import FrozenCLIP


class Tower(nn.Module):
    """A module that computes with the weights of a `FrozenCLIP`.

    The model is not registered as a part: whoever owns both registers it once, its weights stand
    once in a state dict, and its mode is its own. What a tower derives from the weights (folded or
    cast copies, the place of its index tensors) follows them: it is derived anew when they were
    moved, cast or loaded.

    Args:
        clip: the frozen model.
    """

    clip: FrozenCLIP

    def __init__(self, clip: FrozenCLIP) -> None:
        super().__init__()
        object.__setattr__(self, "clip", clip)  # past `nn.Module`, which would register it
        self._derived_from = -1

    def refresh(self) -> None:
        """Derive anew what depends on the weights, if they changed."""
        if torch.compiler.is_compiling() or self._derived_from == self.clip.version:
            return  # compiled code is entered behind a refresh
        self._derived_from = self.clip.version
        self.derive()
        self.to(self.clip.device)

    def derive(self) -> None:
        """Whatever is made of the weights."""
