"""Fixtures: small CLIPs with random weights, and the bundled ones."""

import gc
import importlib
from collections.abc import Generator, Iterator
from functools import cache
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from helpers.models import small_model

from fastprompt import FrozenCLIP, load_clip
from fastprompt._utils import dtypes

CACHED = type(cache(len))

# importing and collecting create a million objects, which the garbage collector would pass over
# again and again: a third of the time
gc.disable()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Leave what has been imported and collected out of the garbage collector's later passes."""
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Run all tests of a file in the same process, which then makes what they share only once."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadFileScheduling

    # xdist begins with the files of many tests; the slow tests' times differ by a thousand
    if "not slow" not in config.option.markexpr:
        config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` or ``peers`` are skipped where there is none.

    Files with a test that needs a time limit of its own come first, since none should be left to
    one process at the end.
    """
    long = {item.path for item in items if item.get_closest_marker("timeout")}
    items.sort(key=lambda item: item.path not in long)
    missing = {}
    if not torch.cuda.is_available():
        missing["gpu"] = "no GPU"
    if not all(find_spec(name) for name in ("torchattacks", "foolbox")):
        missing["peers"] = "pip install -e '.[peers]'"
    for item in items:
        for marker in missing.keys() & {mark.name for mark in item.iter_markers()}:
            item.add_marker(pytest.mark.skip(reason=missing[marker]))


@pytest.fixture(autouse=True, scope="module")
def _no_caches(request: pytest.FixtureRequest) -> Generator[None, None, None]:
    """Free the models that the tests of a file have cached."""
    yield
    for value in vars(request.module).values():
        if isinstance(value, CACHED) and not value.__module__.startswith("fastprompt"):
            value.cache_clear()


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


@pytest.fixture
def double() -> Iterator[torch.dtype]:
    """float64 by default, in which new modules, and prompts, make their parameters."""
    torch.set_default_dtype(torch.float64)
    yield torch.float64
    torch.set_default_dtype(torch.float32)


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
