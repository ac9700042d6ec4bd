"""Memory that a launcher allocates is poisoned in every test here."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor


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
