"""Base class of the towers, which use a frozen model without owning it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..clip.frozen import FrozenCLIP


def keep(module: nn.Module, **tensors: Tensor | None) -> None:
    """Register index tensors as buffers: they follow the module's device and are not saved.

    A copy to the device in each forward pass would synchronize.
    """
    for name, tensor in tensors.items():
        module.register_buffer(name, tensor, persistent=False)


class Tower(nn.Module):
    """Module that computes with the weights of a `FrozenCLIP`.

    The model is not registered as a submodule: the owner of both registers it once, a state dict
    holds its weights once, and the tower's mode does not affect it. The tensors that a tower
    derives from the weights (folded or cast copies) and the device of its index tensors are updated
    after the weights were moved, cast or loaded.

    Args:
        clip: the frozen model.
    """

    clip: FrozenCLIP

    def __init__(self, clip: FrozenCLIP) -> None:
        super().__init__()
        object.__setattr__(self, "clip", clip)  # bypasses `nn.Module`, which would register it
        self._derived_from = -1

    def refresh(self) -> None:
        """Recompute the tensors derived from the weights, if the weights changed."""
        if torch.compiler.is_compiling():
            return  # callers of compiled code refresh first
        version = self.clip.version
        if self._derived_from == version:
            return
        self.derive()
        self.to(self.clip.device)
        # last: after an error, and meanwhile in other threads, the derived tensors are the old ones
        self._derived_from = version

    def derive(self) -> None:
        """Compute all tensors derived from the weights."""
