"""The patch embedding: a matrix product of pixels, for blocks in bfloat16 too."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._utils.dtypes import multiplies_bf16

# On a CPU, the gradient's product must save more than the 0.1 ms that a `Function` takes: weights
# of ViT-B/16 are 590,000, those of the bundled models 12,000.
_FEWEST_ON_CPU = 100_000


def patches(images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve with a stride equal to the kernel size, ``[B, C, H, W]`` to ``[B, N, width]``.

    Uses a matrix product: on the CPU, a convolution's forward pass and gradient with respect to the
    pixels take four times as long (``benchmarks/ladder/test_fold.py``).
    """
    return F.linear(_rows(images, weight), weight.flatten(1), bias)


def patches_bf16(images: Tensor, weight: Tensor, bias: Tensor, halves: Tensor) -> Tensor:
    """Compute `patches` of float32 pixels and weights in bfloat16, without rounding either first.

    The output alone is rounded, and the gradient, which arrives rounded: it takes one product in
    bfloat16. On a GPU, the output takes one product of high and low halves.

    Args:
        images, weight, bias: see `patches`; float32.
        halves: the result of `halves_of`.
    """
    out: Tensor = _Product.apply(_rows(images, weight), weight.flatten(1), bias, halves)
    return out


def halves_of(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Return the operand ``[width, K]`` of `patches_bf16`; None if it is not to be used.

    It is used for float32 weights and blocks in bfloat16, where that is faster: an emulated product
    takes more than twice the time of one in float32.
    """
    wanted = (weight.dtype, dtype) == (torch.float32, torch.bfloat16)
    if not wanted or not multiplies_bf16(weight.device):
        return None
    if weight.device.type == "cpu" and weight.numel() < _FEWEST_ON_CPU:
        return None
    high, low = _split(weight.flatten(1))
    ends = torch.stack(_split(bias), -1)
    # rows of a multiple of 16 bytes, as GPUs need them
    return F.pad(torch.cat([high, high, low, ends], -1), (0, -(3 * high.shape[-1] + 2) % 8))


def _rows(images: Tensor, weight: Tensor) -> Tensor:
    """Return the pixels of each patch, ``[B, N, C * h * w]``."""
    channels, height, width = weight.shape[-3:]
    rows, columns = images.shape[-2] // height, images.shape[-1] // width
    x = images[..., : rows * height, : columns * width]
    x = x.reshape(x.shape[0], channels, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5)
    return x.flatten(3).flatten(1, 2)


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return bfloat16 tensors whose sum is ``x`` but for at most 2^-16 of it."""
    high = x.bfloat16()
    return high, (x - high).bfloat16()


def product_of_halves(rows: Tensor, halves: Tensor) -> Tensor:
    """Multiply ``[B, N, P]`` in one bfloat16 product, which adds in float32 and rounds once.

    ``(x + x') (w + w') + b``, without ``x' w'``, which is at most 2^-16 of x w.
    """
    high, low = _split(rows)
    ends = high.new_ones(()).expand(*high.shape[:-1], halves.shape[-1] - 3 * high.shape[-1])
    return F.linear(torch.cat([high, low, high, ends], -1), halves)


class _Product(torch.autograd.Function):
    """``rows @ weight + bias``; only the rows get a gradient."""

    @staticmethod
    def forward(rows: Tensor, weight: Tensor, bias: Tensor, halves: Tensor) -> Tensor:
        # bfloat16 units of a CPU have twice the float32 rate, those of a GPU ten times
        if rows.device.type == "cpu":
            return F.linear(rows, weight, bias).bfloat16()
        return product_of_halves(rows, halves)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        rows, _, _, halves = inputs
        ctx.save_for_backward(halves)
        ctx.pixels = rows.shape[-1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (halves,) = ctx.saved_tensors
        return (grads[0] @ halves[:, : ctx.pixels]).float(), None, None, None
