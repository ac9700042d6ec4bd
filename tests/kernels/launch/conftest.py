"""What a launcher allocates is poisoned in every test here; the interpreter is made faster."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from triton import language as tl
from triton.runtime.interpreter import InterpretedFunction, _patch_lang


@pytest.fixture(scope="session", autouse=True)
def _helpers_are_called_directly() -> None:
    """Triton patches its language at each launch, and again at each call of a helper function.

    The latter takes a quarter of the time; once is enough, for the module of Triton's own helpers.
    """

    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        return self.rewrite()(*arguments, **named)

    _patch_lang(tl.sum.fn)
    InterpretedFunction.__call__ = call


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a launcher allocates holds NaN: a place that no kernel writes is seen."""

    def poisoning(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def poisoned(*arguments: Any, **named: Any) -> Tensor:
            out = allocate(*arguments, **named)
            return out.fill_(float("nan")) if out.is_floating_point() else out.fill_(-(2**30))

        return poisoned

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poisoning(getattr(torch, name)))
