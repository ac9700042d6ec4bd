"""Precisions by name, and which one a device gets."""

import pytest
import torch
from helpers.models import small_model

from fastprompt import load_clip
from fastprompt._utils import dtypes
from fastprompt._utils.dtypes import (
    at_least_float32,
    check_precision,
    default_precision,
    has_bf16,
)
from fastprompt.towers.engines import resolve_precision

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))
DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


@pytest.fixture
def bf16(monkeypatch):
    """Say whether devices have bfloat16."""
    return lambda has: monkeypatch.setattr(dtypes, "has_bf16", lambda device: has)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
    ids=str,
)
def test_at_least_float32(given, wanted):
    x = torch.tensor([0.5, -2.0], dtype=given)
    out = at_least_float32(x)
    assert out.dtype == wanted
    assert out.tolist() == [0.5, -2.0]
    assert (out is x) == (given == wanted)


def test_bf16_is_what_the_device_computes_in(monkeypatch):
    asked = []

    def supported(including_emulation):
        asked.append(including_emulation)
        return False

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert has_bf16(CPU)
    assert not has_bf16(MPS)
    assert asked == []
    assert not has_bf16(CUDA)
    assert asked == [False]  # emulated bfloat16 is slower than float32


@pytest.mark.parametrize(
    ("dtype", "device", "has", "wanted"),
    [
        (torch.float32, CUDA, True, "bf16"),
        (torch.float32, CUDA, False, "fp32"),
        (torch.float64, CUDA, True, "fp64"),
        (torch.float32, CPU, True, "fp32"),
        (torch.float64, CPU, True, "fp64"),
        (torch.bfloat16, CPU, True, "bf16"),
        (torch.float16, CPU, True, "fp16"),
    ],
)
def test_default_precision(bf16, dtype, device, has, wanted):
    bf16(has)
    assert default_precision(dtype, device) == wanted


@pytest.mark.parametrize("name", DTYPES)
def test_a_known_precision_is_its_dtype(name):
    assert check_precision(name, CPU) == DTYPES[name]


def test_precisions_that_are_refused(bf16):
    with pytest.raises(ValueError, match=r"^precision .*fp64.*'int8'"):
        check_precision("int8", CPU)
    with pytest.raises(ValueError, match=r"^precision.*mps .*'fp32'"):
        check_precision("fp64", MPS)
    bf16(False)
    with pytest.raises(ValueError, match=r"^precision.*cuda .*'fp32'"):
        check_precision("bf16", CUDA)
    assert check_precision("fp32", CUDA) == torch.float32


@pytest.mark.parametrize("name", ["fp32", "fp64"])
@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_the_weights_own_precision_is_the_default_on_the_cpu(engine, name):
    clip = load_clip(small_model().to(DTYPES[name]))
    assert resolve_precision(clip, engine, None) == name
    assert resolve_precision(clip, engine, name) == name
    other = "fp64" if name == "fp32" else "fp32"
    if engine == "fast":
        assert resolve_precision(clip, engine, other) == other
    else:
        with pytest.raises(ValueError, match=f"^precision .*{name!r}.*'reference'.*{other!r}"):
            resolve_precision(clip, engine, other)


def test_the_reference_engine_stays_in_float32_where_the_fast_one_takes_bf16(small_clip, bf16):
    bf16(True)

    class OnAGPU:
        dtype, device = torch.float32, CUDA

    assert resolve_precision(OnAGPU, "fast", None) == "bf16"
    assert resolve_precision(OnAGPU, "reference", None) == "fp32"
    bf16(False)
    assert resolve_precision(OnAGPU, "fast", None) == "fp32"


def test_an_unknown_engine_is_refused_first(small_clip):
    with pytest.raises(ValueError, match=r"^engine .*'fast'.*'slow'"):
        resolve_precision(small_clip, "slow", "int8")
