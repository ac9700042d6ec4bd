"""Fixtures: small CLIPs with random weights, and the bundled ones."""

import importlib
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from helpers.models import small_model

from fastprompt import FrozenCLIP, load_clip
from fastprompt._utils import dtypes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` or ``peers`` are skipped where there is none."""
    missing = {}
    if not torch.cuda.is_available():
        missing["gpu"] = "no GPU"
    if not all(find_spec(name) for name in ("torchattacks", "foolbox")):
        missing["peers"] = "pip install -e '.[peers]'"
    for item in items:
        for marker in missing.keys() & {mark.name for mark in item.iter_markers()}:
            item.add_marker(pytest.mark.skip(reason=missing[marker]))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    # the models here are small: on a busy machine two threads mostly wait for each other
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _plain_cpu() -> Iterator[None]:
    """On every CPU, ``precision="auto"`` gives float32, in which the tests compare."""
    why_not = dtypes.why_no_bf16
    with pytest.MonkeyPatch.context() as patch:
        plain = "this CPU has no bfloat16 units"
        patch.setattr(dtypes, "why_no_bf16", lambda d: plain if d.type == "cpu" else why_not(d))
        yield


@pytest.fixture
def bf16_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU multiply bfloat16 natively, as far as ``precision="auto"`` knows."""
    monkeypatch.setattr(dtypes, "why_no_bf16", lambda device: "")


@pytest.fixture(scope="session")
def small_clip() -> FrozenCLIP:
    return load_clip(small_model())


@pytest.fixture(scope="session")
def bundled_clip() -> FrozenCLIP:
    return load_clip("tiny-shapes")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(4, 3, 48, 48, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def torchattacks() -> Any:
    """The package, for tests marked ``peers``."""
    return importlib.import_module("torchattacks")
