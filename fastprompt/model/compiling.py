"""Which towers `torch.compile` takes, and how."""

from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeVar

import torch

from ..towers import ImageTower, TextPath, TextTower
from ..towers.base import Tower

T = TypeVar("T")


def compilable(tower: Tower) -> bool:
    """Whether the tower is all of our own code, which makes one graph."""
    if isinstance(tower, TextTower):
        return tower.path is not TextPath.INPUT_EMBEDDINGS
    return isinstance(tower, ImageTower)


def compiled(function: Callable[..., T]) -> Callable[..., T]:
    """A function compiled as one graph, on a copy of its code.

    Dynamo bounds the graphs of one code object: those of other models must not count here.
    """
    assert isinstance(function, FunctionType)
    own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    # a full batch and a last one, with and without gradients, for tuning, attack and validation:
    # more than the eight that are let through by default
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, 32)
    return torch.compile(own, fullgraph=True)
