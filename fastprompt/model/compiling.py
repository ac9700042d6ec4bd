"""Compilation of the towers with `torch.compile`."""

from collections.abc import Callable
from importlib.util import find_spec
from types import FunctionType
from typing import Any, TypeVar

import torch

from ..towers import ImageTower, TextPath, TextTower
from ..towers.base import Tower

T = TypeVar("T")


def compilable(tower: Tower) -> bool:
    """Whether the tower runs only this library's code, which compiles without graph breaks."""
    if isinstance(tower, TextTower):
        return tower.path is not TextPath.INPUT_EMBEDDINGS
    return isinstance(tower, ImageTower)


def why_uncompiled() -> str:
    """Return why `torch.compile` cannot generate code for a GPU, or an empty string."""
    return "" if find_spec("triton") else "Triton is not installed"


def compiled(function: Callable[..., T]) -> Callable[..., T]:
    """Compile a copy of a function to a single graph.

    Dynamo limits the graphs per code object; with a copy, those of other models do not count.
    """
    assert isinstance(function, FunctionType)
    own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    # one block, with and without refiner and prompts, for attack, tuning and validation, needs more
    # graphs than Dynamo's default limit of eight
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, 32)
    return torch.compile(own, fullgraph=True)
