"""The machine under a measurement: its facts, its bare matmul rate, the memory of one function."""

from __future__ import annotations

import ctypes
import functools
import gc
import multiprocessing
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

T = TypeVar("T")

# numbers of glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def keep_freed_memory() -> bool:
    """Let the process keep what it frees, for all rungs alike; False where there is no glibc.

    glibc gives a big tensor back to the system at every free, and the page faults of getting it
    again slow eager code down, which frees many, far more than code that does without them: that
    baseline would be a false one.
    """
    libc = _libc()
    if libc is None:
        return False
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: 256 << 20}
    taken = [libc.mallopt(name, value) for name, value in settings.items()]
    return all(taken)


def grow_heap(most: int = 7 << 30) -> int:
    """Touch memory and free it again, which `keep_freed_memory` keeps: bytes.

    Otherwise the first to need so much would pay for all that come behind it, and that is the eager
    rung of the largest group.
    """
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    size = min(most, free // 2)  # of what is free, for what else runs here
    torch.zeros(size, dtype=torch.uint8).fill_(1)
    return size


@dataclass(frozen=True)
class Gemm:
    """A linear layer without bias, ``[rows, inputs]`` to ``[rows, outputs]``, weights frozen."""

    rows: int
    inputs: int
    outputs: int

    @property
    def flops(self) -> int:
        """Forward, and backward into the input."""
        return 4 * self.rows * self.inputs * self.outputs


def layer_gemms(tokens: int, width: int) -> tuple[Gemm, ...]:
    """The linear layers of one transformer block on ``tokens`` tokens."""
    shapes = ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width))
    return tuple(Gemm(tokens, i, o) for i, o in shapes)


def gemm_pass(gemms: Sequence[Gemm]) -> Callable[[], None]:
    """A function that does each of ``gemms`` once, forward and backward, and nothing else."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    many = [(random(g.rows, g.inputs), random(g.rows, g.outputs), g) for g in gemms]
    weights = [random(g.outputs, g.inputs) for g in gemms]

    def run() -> None:
        for (x, gradient, _), weight in zip(many, weights, strict=True):
            F.linear(x, weight)
            gradient @ weight

    return run


def _status(key: str) -> int:
    """A size from ``/proc/self/status``, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {key}")


def peak_memory(function: Callable[[], object]) -> int:
    """Bytes of resident memory that ``function`` takes at its peak, above those at its start.

    For a fresh process (`in_child`): memory that was freed before but is still held would be used
    again unseen. What can be given back is given back first.

    Raises:
        RuntimeError: this is not Linux, or the peak can't be reset.
    """
    gc.collect()
    if (libc := _libc()) is not None:
        libc.malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    except OSError as error:
        raise RuntimeError(f"peak memory needs Linux's /proc/self/clear_refs: {error}") from None
    start = _status("VmHWM")
    function()
    return _status("VmHWM") - start


def in_child(function: Callable[..., T], *args: Any) -> T:
    """``function(*args)`` in a fresh process; the function must be importable there."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@functools.cache
def _gpu() -> dict[str, Any]:
    """The card, its driver, and the clocks that it is allowed, as `nvidia-smi` says."""
    driver, _, clocks = _asked("driver_version,clocks.max.sm,clocks.max.memory").partition(", ")
    return {"card": torch.cuda.get_device_name(), "driver": driver, "clocks": clocks}


def _asked(query: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def clocks_now() -> str:
    """The GPU's clocks of this moment, of its processors and its memory."""
    return _asked("clocks.sm,clocks.memory")


def facts() -> dict[str, Any]:
    """What a time depends on beside the code."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": version("triton") if find_spec("triton") else None,
        "dtype": "float32",
        **(_gpu() if torch.cuda.is_available() else {}),
    }
