"""Machine facts, memory settings, plain matrix products, and a function's peak memory."""

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

# constants of glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory in the process; return False on systems without glibc.

    By default glibc returns large tensors to the system at every free. The page faults of
    allocating them again slow down eager code, which frees many tensors, far more than code that
    frees few: the baseline would be unfairly slow.
    """
    libc = _libc()
    if libc is None:
        return False
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: 256 << 20}
    taken = [libc.mallopt(name, value) for name, value in settings.items()]
    return all(taken)


def grow_heap(most: int = 7 << 30) -> int:
    """Allocate and free memory that `keep_freed_memory` then keeps; return its size in bytes.

    Otherwise the first code that needs as much memory, the eager implementation of the largest
    group, would pay for the page faults of all later ones.

    Raises:
        RuntimeError: the system does not report its free memory: it is not Linux.
    """
    if "SC_AVPHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        raise RuntimeError("free memory needs Linux's os.sysconf")
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    size = min(most, free // 2)  # leave half of the free memory to other processes
    torch.zeros(size, dtype=torch.uint8).fill_(1)
    return size


@dataclass(frozen=True)
class Gemm:
    """A frozen linear layer without bias, from ``[rows, inputs]`` to ``[rows, outputs]``."""

    rows: int
    inputs: int
    outputs: int

    @property
    def flops(self) -> int:
        """FLOPs of the forward pass and of the backward pass to the input."""
        return 4 * self.rows * self.inputs * self.outputs


def layer_gemms(tokens: int, width: int) -> tuple[Gemm, ...]:
    """Return the linear layers of one transformer block on ``tokens`` tokens."""
    shapes = ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width))
    return tuple(Gemm(tokens, i, o) for i, o in shapes)


def gemm_pass(gemms: Sequence[Gemm]) -> Callable[[], None]:
    """Return a function that runs only the forward and backward products of ``gemms``."""
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
    """Return a size from ``/proc/self/status`` in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {key}")


def peak_memory(function: Callable[[], object]) -> int:
    """Return the peak resident memory of ``function`` in bytes, above that at its start.

    Call it in a fresh process (`in_child`): memory that was freed but is still held would be reused
    and not be counted. Memory that can be returned to the system is returned first.

    Raises:
        RuntimeError: the system is not Linux, or the peak cannot be reset.
    """
    gc.collect()
    if (libc := _libc()) is not None:
        libc.malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    except OSError as error:
        raise RuntimeError(f"peak memory needs Linux's /proc/self/clear_refs: {error}") from None
    start = _status("VmHWM")
    function()
    return _status("VmHWM") - start


def in_child(function: Callable[..., T], *args: Any) -> T:
    """Call ``function(*args)`` in a fresh process, where the function must be importable."""
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
    """Return the card, its driver and its maximum clocks, as reported by `nvidia-smi`."""
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
    """Return the current clocks of the GPU's multiprocessors and memory."""
    return _asked("clocks.sm,clocks.memory")


def facts() -> dict[str, Any]:
    """Return the properties of the machine that affect run times."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": version("triton") if find_spec("triton") else None,
        "dtype": "float32",
        **(_gpu() if torch.cuda.is_available() else {}),
    }
