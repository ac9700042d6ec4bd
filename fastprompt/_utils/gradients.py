"""Temporarily disable the parameter gradients of a module."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def without_gradients(module: object) -> Iterator[None]:
    """Temporarily freeze the parameters of ``module``; does nothing for other objects."""
    parameters = module.parameters() if isinstance(module, nn.Module) else ()
    learning = [p for p in parameters if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
