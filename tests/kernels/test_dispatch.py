"""Which implementation runs, and why a kernel can't."""

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from fastprompt.kernels import _dispatch

ROOT = Path(__file__).resolve().parents[2]


class OnGPU(torch.Tensor):
    """Says that it is on a GPU."""

    @property
    def is_cuda(self):
        return True


def on_gpu(dtype=torch.float32):
    return torch.zeros(2, dtype=dtype).as_subclass(OnGPU)


def test_what_keeps_a_kernel_from_running(monkeypatch):
    assert _dispatch.obstacle([on_gpu(), 1.0, None]) == ""
    assert "on cpu, not on a GPU" in _dispatch.obstacle([torch.zeros(2)])
    assert "float64" in _dispatch.obstacle([on_gpu(), on_gpu(torch.float64)])
    assert "float64" in _dispatch.obstacle([3, [on_gpu(), on_gpu(torch.float64)]])
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert _dispatch.obstacle([torch.zeros(2)]) == ""
    assert "float64" in _dispatch.obstacle([torch.zeros(2, dtype=torch.float64)])
    monkeypatch.setattr(_dispatch, "_INSTALLED", False)
    assert _dispatch.obstacle([on_gpu()]) == "Triton is not installed"


def test_which_implementation_is_called(monkeypatch):
    plain = torch.zeros(2)
    for impl in ("auto", "torch"):
        assert _dispatch.resolve(impl, None, plain) == impl
    assert _dispatch.resolve("triton", on_gpu()) == "auto"  # the registered op, which compiles
    with pytest.raises(RuntimeError, match=r"^impl.*'triton'.*'auto'"):
        _dispatch.resolve("triton", plain)
    with pytest.raises(ValueError, match=r"^impl .*'cuda'"):
        _dispatch.resolve("cuda", plain)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert _dispatch.resolve("triton", plain) == "triton"


@pytest.mark.parametrize(
    ("version", "dtype", "precision", "expected"),
    [
        (None, torch.float32, "highest", "tf32x3"),
        (None, torch.float32, "high", "tf32"),
        (None, torch.bfloat16, "highest", "tf32"),
        ("7.0", torch.bfloat16, "highest", "ieee"),
        ("7.0", torch.float32, "high", "ieee"),
    ],
)
def test_how_a_kernel_multiplies(monkeypatch, version, dtype, precision, expected):
    monkeypatch.setattr(torch.version, "hip", version)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert _dispatch.dot_precision(dtype) == expected
    finally:
        torch.set_float32_matmul_precision(before)


class Given(NamedTuple):
    number: float
    tensor: torch.Tensor


class Every(NamedTuple):
    x: torch.Tensor
    out: torch.Tensor | None
    several: list[torch.Tensor]
    flags: list[bool]
    n: int
    eps: float
    flag: bool


def test_the_schema_is_that_of_the_fields():
    got = _dispatch._parameters(Every, {"out"})
    assert got == (
        "Tensor x, Tensor(a1!)? out, Tensor[] several, bool[] flags, SymInt n, float eps, bool flag"
    )
    schema = torch._C.parse_schema(f"op({got}) -> ()")
    assert [a.name for a in schema.arguments] == list(Every._fields)
    assert [a.is_write for a in schema.arguments] == [name == "out" for name in Every._fields]


@pytest.mark.parametrize("double", [False, True])
def test_on_a_gpu_the_launcher_runs_but_for_float64(monkeypatch, double):
    """The implementation registered for GPUs, called by hand."""
    registered, entered = {}, []

    @contextmanager
    def current(device):
        entered.append(device)
        yield

    def remember(name, device, function):
        registered[device] = function

    monkeypatch.setattr(torch.library, "impl", remember)
    monkeypatch.setattr(torch.cuda, "device", current)
    name = f"a_new_op_{int(double)}"
    launcher = SimpleNamespace(launch=lambda given: f"kernel of {given.number}")
    monkeypatch.setitem(sys.modules, "a_package.kernel", launcher)
    monkeypatch.setitem(sys.modules, "a_package", ModuleType("a_package"))
    monkeypatch.setattr(Given, "__module__", "a_package.arguments")
    _dispatch.define(
        name,
        Given,
        "Tensor",
        eager=lambda given: f"plain of {given.number}",
        launch=".kernel:launch",
        fake=lambda _: None,
    )
    tensor = on_gpu(torch.float64 if double else torch.float32)
    assert set(registered) == {"CPU", "CUDA", "default"}
    assert registered["CUDA"](1.0, tensor) == ("plain of 1.0" if double else "kernel of 1.0")
    assert entered == ([] if double else [tensor.device])
    assert registered["CPU"](2.0, torch.zeros(2)) == "plain of 2.0"


def test_the_checkout_may_be_found_under_its_folder_s_name():
    """From the root of a checkout `import kernels` finds them a second time: transformers does."""
    code = "import fastprompt.kernels as a, kernels as b; print(a is not b, len(b.__all__))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[0] == "True"
