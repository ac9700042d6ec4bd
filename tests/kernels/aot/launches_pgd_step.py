"""Launches of the step kernels at the sizes of a real attack: 256 pictures of 224 x 224."""

from collections.abc import Callable

import torch

from fastprompt.kernels.pgd_step import launch
from fastprompt.kernels.pgd_step.arguments import Step, TwoPointStep

ELEMENTWISE = {"_pgd_step_kernel", "_apgd_step_kernel"}
MAY_SPILL: set[str] = set()
_SHAPE = (256, 3, 224, 224)


def _images(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(_SHAPE, dtype=dtype, device="meta")


def _pgd(dtype: torch.dtype, *, full: bool) -> None:
    grad = _images(dtype)
    counts = torch.empty(256, 2, dtype=torch.int64, device="meta")
    each = torch.empty(256, device="meta") if full else None
    settings = each, each, 0.01, 0.02, 0.0, 1.0, full, counts if full else None
    launch.launch_pgd_step(Step(_images(), _images(), grad, *settings))


def _apgd(dtype: torch.dtype) -> None:
    each = torch.empty(256, device="meta")
    images = (_images(), _images(), _images(), _images(dtype))
    settings = each, None, 0.0, 0.02, 0.75, 0.0, 1.0, False, None
    launch.launch_apgd_step(TwoPointStep(*images, *settings))


def cases(dtype: torch.dtype) -> dict[str, Callable[[], None]]:
    """By name; each starts one or several kernels."""
    return {
        "pgd_step": lambda: _pgd(dtype, full=False),
        "pgd_step-all-outputs": lambda: _pgd(dtype, full=True),
        "apgd_step": lambda: _apgd(dtype),
    }
