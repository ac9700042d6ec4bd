"""Kernels built for GPUs that are not here, exactly as their launchers would start them.

A launcher is called on tensors without memory (``device="meta"``); what it hands to Triton is
written down instead of run, and then compiled with the specializations of a real launch: pointers
on 16 bytes, integers that 16 divides, ones and None as constants.
"""

import importlib
import math
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
AOT = Path(__file__).parents[1] / "kernels" / "aot"
TABLE = AOT / "resources.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
}
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
# what a launcher may pass beside the kernel's own arguments, and each backend's reading of it
_AMD_OPTIONS = {"num_warps", "num_stages", "enable_fp_fusion"}


@dataclass(frozen=True)
class Launch:
    """One start of a kernel, with all that it is compiled for.

    Attributes:
        source: the kernel with its specializations.
        options: warps, stages and the like.
        given: the kernel's arguments by name.
        programs: size of the grid.
    """

    name: str
    source: ASTSource
    options: dict[str, Any]
    given: dict[str, Any]
    programs: int


def launches(call: Callable[[], object], *, hip: bool = False) -> list[Launch]:
    """What ``call`` hands to Triton, in order."""
    found: list[Launch] = []

    def note(kernel: JITFunction, *values: Any, grid: Any, warmup: bool, **named: Any) -> None:
        assert all(int(n) > 0 for n in grid), f"{kernel.__name__}: grid {grid}"
        found.append(_launch(kernel, values, named, math.prod(grid)))

    with mock.patch.object(JITFunction, "run", note), _built_for_amd(hip):
        call()
    return found


@contextmanager
def _built_for_amd(hip: bool) -> Iterator[None]:
    with mock.patch.object(torch.version, "hip", "7.0" if hip else None):
        yield


def _launch(
    kernel: JITFunction, values: tuple[Any, ...], named: dict[str, Any], programs: int
) -> Launch:
    own = [p.name for p in kernel.params]
    options = {k: v for k, v in named.items() if k not in own}
    given = dict(zip(own, values, strict=False)) | {k: v for k, v in named.items() if k in own}
    signature: dict[str, Any] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}

    def kind_of(value: Any, place: tuple[int, ...], constant: bool) -> Any:
        if isinstance(value, tuple) and not constant:
            return tuple(kind_of(v, (*place, i), False) for i, v in enumerate(value))
        kind, sixteen = _kind(value, constant)
        if kind == "constexpr":
            constants[place] = value
        elif sixteen:
            attributes[place] = [["tt.divisibility", 16]]
        return kind

    for place, parameter in enumerate(kernel.params):
        value = given[parameter.name]
        signature[parameter.name] = kind_of(value, (place,), parameter.is_constexpr)
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return Launch(kernel.__name__, source, options, given, programs)


def _kind(value: Any, constant: bool) -> tuple[str, bool]:
    """Triton's name for the type of an argument, and whether 16 divides it."""
    if constant or value is None or (isinstance(value, int) and value == 1):
        return "constexpr", False
    if isinstance(value, torch.Tensor):
        return _POINTERS[value.dtype], value.storage_offset() * value.element_size() % 16 == 0
    if isinstance(value, float):
        return "fp32", False
    assert isinstance(value, int), type(value)
    return "i32" if -(2**31) <= value < 2**31 else "i64", value % 16 == 0


def build(launch: Launch, target: str) -> Any:
    """The compiled kernel, its intermediate stages in ``.asm``."""
    options = launch.options
    if target.startswith("gfx"):
        options = {k: v for k, v in options.items() if k in _AMD_OPTIONS}
    return triton.compile(launch.source, target=TARGETS[target], options=options)


def usage(built: Any, target: str, folder: Path) -> dict[str, int]:
    """Registers of a thread, bytes that it spills, bytes of shared memory of a block.

    Also 1 if the kernel multiplies with the asynchronous instructions of a whole warp group.
    """
    if target.startswith("gfx"):
        text = built.asm["amdgcn"]
        numbers = {
            "registers": re.search(r"\.vgpr_count:\s+(\d+)", text),
            "spilled": re.search(r"\.private_segment_fixed_size:\s+(\d+)", text),
        }
        found = {k: int(v[1]) for k, v in numbers.items() if v}
        return found | {"shared": built.metadata.shared, "wgmma": 0}
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(built.asm["cubin"])
    text = subprocess.run(
        [_CUOBJDUMP, "-res-usage", cubin], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    assert found, text
    registers, stack, _, local = (int(n) for n in found.groups())
    return {
        "registers": registers,
        "spilled": stack + local,
        "shared": built.metadata.shared,
        "wgmma": int(bool(re.search(r"wgmma\.mma|tcgen05\.mma", built.asm["ptx"]))),
    }


def slow_products(built: Any) -> list[str]:
    """Products of 64 rows or more in 16 bits that do not use a warp group's instructions.

    Those become ``ttng`` operations; a ``tt.dot`` that is left becomes ``mma.sync``.
    """
    shapes = re.findall(r"tt\.dot .*-> tensor<(\d+)x\d+xf32", built.asm["ttgir"])
    lines = [line for line in built.asm["ttgir"].splitlines() if "tt.dot " in line]
    assert len(shapes) == len(lines)
    return [
        line.strip()
        for line, rows in zip(lines, shapes, strict=True)
        if int(rows) >= 64 and re.search(r"x(bf16|f16)", line)
    ]


def module_of(op: str) -> ModuleType:
    """The launches of an op; pytest puts their folder on the path."""
    return importlib.import_module(f"launches_{op}")


def all_cases() -> Iterator[tuple[str, str, str, str]]:
    """Op, case, dtype and target of each launch."""
    for path in sorted(AOT.glob("launches_*.py")):
        op = path.stem.removeprefix("launches_")
        for dtype in DTYPES:
            for case in module_of(op).cases(DTYPES[dtype]):
                for target in TARGETS:
                    yield op, case, dtype, target


def cases_of_tests() -> Iterator[Any]:
    """The launches that the tests compile, for `pytest.mark.parametrize`.

    Compiling takes seconds each: those for sm_90 are fast tests, those for other targets slow ones
    in bfloat16 alone (or the case's only dtype). `resources.py` compiles all.
    """
    for op, case, dtype, target in all_cases():
        main = target == "sm_90"
        if main or dtype == "bf16" or case not in module_of(op).cases(DTYPES["bf16"]):
            marks = [] if main else [pytest.mark.slow]
            yield pytest.param(op, case, dtype, target, id=f"{case}-{dtype}-{target}", marks=marks)


def compiled(op: str, case: str, dtype: str, target: str) -> list[tuple[str, ModuleType, Any]]:
    """Name, module of launches and compiled kernel of each launch."""
    module = module_of(op)
    found = launches(module.cases(DTYPES[dtype])[case], hip=target.startswith("gfx"))
    assert found
    return [(launch.name, module, build(launch, target)) for launch in found]
