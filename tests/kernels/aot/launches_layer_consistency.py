"""Launches at the sizes of NAP's published setting: ViT-B/16, batch 32, 12 layers, 213 tokens."""

from collections.abc import Callable

import torch

from fastprompt.kernels.layer_consistency import launch
from fastprompt.kernels.layer_consistency.arguments import Layers, LayersBackward

ELEMENTWISE = {"_row_sums_kernel", "_row_gradient_kernel"}
MAY_SPILL: set[str] = set()
_SAMPLES, _TOKENS = 32, (213, 768)


def _layers(dtype: torch.dtype, rows: int, count: int) -> list[torch.Tensor]:
    return [torch.empty(rows, *_TOKENS, dtype=dtype, device="meta") for _ in range(count)]


def _forward(dtype: torch.dtype, rows: int, count: int) -> None:
    layers = _layers(dtype, rows, count)
    launch.launch_layer_consistency(Layers(layers, layers, _SAMPLES))


def _backward(dtype: torch.dtype, rows: int, wanted: list[bool]) -> None:
    layers = _layers(dtype, rows, len(wanted) // 2)
    grad = torch.empty(_SAMPLES, device="meta")
    norms = torch.empty(rows * len(layers), 4, device="meta")
    given = LayersBackward(grad, norms, layers, layers, wanted)
    launch.launch_layer_consistency_backward(given)


def cases(dtype: torch.dtype) -> dict[str, Callable[[], None]]:
    """By name; each starts one or several kernels."""
    return {
        "layer_consistency-list": lambda: _forward(dtype, _SAMPLES, 12),
        "layer_consistency-stack": lambda: _forward(dtype, 12 * _SAMPLES, 1),
        "layer_consistency-stack-gradients": lambda: _backward(dtype, 12 * _SAMPLES, [True, True]),
        "layer_consistency-gradients": lambda: _backward(dtype, _SAMPLES, [True] * 24),
        "layer_consistency-one-gradient": lambda: _backward(dtype, _SAMPLES, [False, True]),
    }
