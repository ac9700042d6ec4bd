"""Differentiable JPEG, through which an attack on the JPEG defense backpropagates.

JPEG removes fine detail, and perturbations found with the identity's gradient are mostly fine
detail, so that attack is weak. This module implements all steps of the codec. All are linear
except the rounding of the coefficients.
"""

import io
import math
from collections.abc import Callable
from functools import lru_cache

import torch
from PIL import Image
from torch import Tensor

from .._utils.dtypes import at_least_float32

_BLOCK = 8
# RGB to luma, blue difference, red difference, and back (JFIF 1.02, from ITU-R BT.601)
_TO_YCC = [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
_TO_RGB = [[1.0, 0.0, 1.402], [1.0, -0.344136, -0.714136], [1.0, 1.772, 0.0]]


def soft_round(x: Tensor) -> Tensor:
    """Round approximately: ``r + (x - r)^3 + (x - r) / 10``, with r the integer nearest to x.

    The cubic term is from Shin and Song, "JPEG-resistant adversarial images", NIPS 2017 workshop.
    Its slope grows with the distance from r and is zero at r, where the coefficients of constant
    blocks and of decoded JPEGs lie; the linear term gives these a gradient.
    """
    off = x - x.round().detach()
    return x.round().detach() + off**3 + 0.1 * off


def smooth_jpeg(
    images: Tensor, quality: int, *, rounding: Callable[[Tensor], Tensor] = soft_round
) -> Tensor:
    """Approximate JPEG differentiably for images ``[B, C, H, W]``; the output is not clamped.

    C is 3 (RGB) or 1 (luma alone).
    With ``rounding=torch.round`` the result equals the codec's up to its integer arithmetic.
    """
    height, width = images.shape[2:]
    x = at_least_float32(images)
    x = _extend(_extend(x, 2, 2 * _BLOCK), 3, 2 * _BLOCK)
    gray = x.shape[1] == 1
    ycc = 255 * x if gray else _mix(_TO_YCC, 255 * x)
    luma_steps, chroma_steps = (
        torch.tensor(table, dtype=x.dtype, device=x.device).view(_BLOCK, _BLOCK)
        for table in _steps_of(quality)
    )
    # the codec transforms values centered at 0: luma minus 128; chroma is centered already
    luma = _quantize(ycc[:, :1] - 128, luma_steps, rounding) + 128
    if gray:
        return (luma / 255)[:, :, :height, :width].to(images.dtype)
    chroma = _twice(_quantize(_half(ycc[:, 1:]), chroma_steps, rounding))
    rgb = _mix(_TO_RGB, torch.cat([luma, chroma], dim=1)) / 255
    return rgb[:, :, :height, :width].to(images.dtype)


@lru_cache
def _steps_of(quality: int) -> tuple[list[int], list[int]]:
    """Return Pillow's quantization steps of the 64 coefficients, for luma and for chroma."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "JPEG", quality=quality)
    # only the class of JPEG images has this attribute
    tables = Image.open(file).quantization  # type: ignore[attr-defined]
    return list(tables[0]), list(tables[1])


def _mix(matrix: list[list[float]], x: Tensor) -> Tensor:
    weights = torch.tensor(matrix, dtype=x.dtype, device=x.device)
    return torch.einsum("kc,bchw->bkhw", weights, x)


def _extend(x: Tensor, dim: int, multiple: int) -> Tensor:
    """Repeat the last row or column of ``x`` until the size is a multiple of ``multiple``."""
    missing = -x.shape[dim] % multiple
    last = x.narrow(dim, x.shape[dim] - 1, 1)
    return torch.cat([x, *[last] * missing], dim=dim)


def _half(x: Tensor) -> Tensor:
    """Downsample by averaging 2 x 2 pixels."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).mean(dim=(3, 5))


def _twice(x: Tensor) -> Tensor:
    """Upsample by 2 as libjpeg does: 3/4 of a pixel plus 1/4 of its neighbor, on each axis."""
    for dim in (2, 3):
        n = x.shape[dim]
        before = torch.cat([x.narrow(dim, 0, 1), x.narrow(dim, 0, n - 1)], dim=dim)
        after = torch.cat([x.narrow(dim, 1, n - 1), x.narrow(dim, n - 1, 1)], dim=dim)
        pairs = torch.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], dim=dim + 1)
        x = pairs.flatten(dim, dim + 1)
    return x


def _quantize(x: Tensor, steps: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """Round the coefficients of each block of ``[B, C, H, W]`` to multiples of ``steps``."""
    b, c, h, w = x.shape
    cosines = _cosines(x)
    blocks = x.view(b, c, h // _BLOCK, _BLOCK, w // _BLOCK, _BLOCK).transpose(3, 4)
    coefficients = cosines @ blocks @ cosines.T / steps
    back = cosines.T @ (rounding(coefficients) * steps) @ cosines
    return back.transpose(3, 4).reshape(b, c, h, w)


def _cosines(like: Tensor) -> Tensor:
    """Return the matrix of the orthonormal cosine transform of 8 pixels, ``[8, 8]``."""
    pixel = torch.arange(_BLOCK, dtype=like.dtype, device=like.device)
    waves = torch.cos((2 * pixel + 1) * pixel[:, None] * math.pi / (2 * _BLOCK))
    scale = torch.full_like(pixel, math.sqrt(2 / _BLOCK))
    scale[0] = math.sqrt(1 / _BLOCK)
    return scale[:, None] * waves
