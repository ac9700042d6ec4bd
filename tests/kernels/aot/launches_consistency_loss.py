"""Launches at the sizes of CAPT: batches of 32 and 256, ImageNet's 1,000 and 21,000 classes."""

from collections.abc import Callable

import torch

from fastprompt.kernels.consistency_loss import launch
from fastprompt.kernels.consistency_loss.arguments import Loss, LossBackward

# a row of 1,000 classes starts on 8 entries, which the launcher tells the kernels
ELEMENTWISE = {"_consistency_loss_kernel", "_consistency_loss_backward_kernel"}
MAY_SPILL: set[str] = set()


def _logits(dtype: torch.dtype, rows: int, classes: int) -> list[torch.Tensor]:
    return [torch.empty(rows, classes, dtype=dtype, device="meta") for _ in range(3)]


def _labels(rows: int) -> torch.Tensor:
    return torch.empty(rows, dtype=torch.int64, device="meta")


def _forward(dtype: torch.dtype, rows: int, classes: int, *, each: bool, other: bool) -> None:
    weights = torch.empty(rows, device="meta") if each else None
    settings = weights, weights, 0.3, 1.0, other, other, other
    given = Loss(*_logits(dtype, rows, classes), _labels(rows), *settings)
    launch.launch_consistency_loss(given)


def _backward(
    dtype: torch.dtype, rows: int, classes: int, *, other: bool, wanted: list[bool]
) -> None:
    grad = torch.empty(rows, device="meta")
    statistics = torch.empty(rows, 10, device="meta")
    settings = other, other, other, not all(wanted), wanted
    logits = _logits(dtype, rows, classes)
    given = LossBackward(grad, *logits, _labels(rows), statistics, *settings)
    launch.launch_consistency_loss_backward(given)


def cases(dtype: torch.dtype) -> dict[str, Callable[[], None]]:
    """By name; each starts one kernel."""
    adv, every = [True, False, False], [True, True, True]
    return {
        "consistency_loss": lambda: _forward(dtype, 32, 1000, each=True, other=False),
        "consistency_loss-reversed": lambda: _forward(dtype, 256, 1000, each=False, other=True),
        "consistency_loss-21000": lambda: _forward(dtype, 32, 21_000, each=True, other=False),
        "consistency_loss-benchmark": lambda: _forward(dtype, 256, 1000, each=False, other=False),
        "consistency_loss-benchmark-gradient": lambda: _backward(
            dtype, 256, 1000, other=False, wanted=adv
        ),
        "consistency_loss-gradient": lambda: _backward(dtype, 32, 1000, other=False, wanted=adv),
        "consistency_loss-gradients": lambda: _backward(
            dtype, 32, 21_000, other=True, wanted=every
        ),
    }
