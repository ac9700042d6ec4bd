"""Launches of the random start at the size of a real attack: 256 pictures of 224 x 224."""

from collections.abc import Callable

import torch

from fastprompt.kernels.random_start import kernel
from fastprompt.kernels.random_start.arguments import Start

ELEMENTWISE = {"_random_start_kernel"}
MAY_SPILL: set[str] = set()


def _start(*, each: bool) -> None:
    x = torch.empty(256, 3, 224, 224, device="meta")
    indices = torch.empty(256, dtype=torch.int64, device="meta")
    key = torch.empty(2, dtype=torch.int64, device="meta")
    radii = torch.empty(256, device="meta") if each else None
    kernel.launch_random_start(Start(x, indices, key, radii, 0.1, 0.0, 1.0, each))


def cases(dtype: torch.dtype) -> dict[str, Callable[[], None]]:
    """By name; each starts one kernel. Images are float32 alone."""
    if dtype != torch.float32:
        return {}
    return {
        "random_start": lambda: _start(each=False),
        "random_start-each": lambda: _start(each=True),
    }
