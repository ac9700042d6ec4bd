"""JPEG with a derivative: what the attack goes back through where the codec has none.

JPEG drops fine detail, and the identity's gradient asks for little else: an attack with it stops
short. Here all steps of the codec are there, linear but for the rounding of the coefficients.
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
# of red, green and blue: luma, blue and red difference (JFIF 1.02, from ITU-R BT.601)
_TO_YCC = [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
_TO_RGB = [[1.0, 0.0, 1.402], [1.0, -0.344136, -0.714136], [1.0, 1.772, 0.0]]


def soft_round(x: Tensor) -> Tensor:
    """Nearly the nearest whole number: ``r + (x - r)^3 + (x - r) / 10`` for the nearest one, r.

    The cube is Shin and Song's, "JPEG-resistant adversarial images", NIPS 2017 workshop: the nearer
    to the next number, the steeper. It is flat at r, where plain blocks and images that were a JPEG
    lie; the last term is there for these.
    """
    off = x - x.round().detach()
    return x.round().detach() + off**3 + 0.1 * off


def smooth_jpeg(
    images: Tensor, quality: int, *, rounding: Callable[[Tensor], Tensor] = soft_round
) -> Tensor:
    """About what JPEG makes of images ``[B, 3, H, W]``, with a derivative; not kept in [0, 1].

    With ``rounding=torch.round`` it is the codec up to its integer arithmetic.
    """
    height, width = images.shape[2:]
    x = at_least_float32(images)
    x = _extend(_extend(x, 2, 2 * _BLOCK), 3, 2 * _BLOCK)
    ycc = _mix(_TO_YCC, 255 * x)
    luma_steps, chroma_steps = (
        torch.tensor(table, dtype=x.dtype, device=x.device).view(_BLOCK, _BLOCK)
        for table in _steps_of(quality)
    )
    # zero is in the middle of the values that the codec transforms: gray is 128
    luma = _quantize(ycc[:, :1] - 128, luma_steps, rounding) + 128
    chroma = _twice(_quantize(_half(ycc[:, 1:]), chroma_steps, rounding))
    rgb = _mix(_TO_RGB, torch.cat([luma, chroma], dim=1)) / 255
    return rgb[:, :, :height, :width].to(images.dtype)


@lru_cache
def _steps_of(quality: int) -> tuple[list[int], list[int]]:
    """The steps of the 64 coefficients, for luma and for chroma, as Pillow writes them."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "JPEG", quality=quality)
    # an attribute of the JPEG reader alone
    tables = Image.open(file).quantization  # type: ignore[attr-defined]
    return list(tables[0]), list(tables[1])


def _mix(matrix: list[list[float]], x: Tensor) -> Tensor:
    weights = torch.tensor(matrix, dtype=x.dtype, device=x.device)
    return torch.einsum("kc,bchw->bkhw", weights, x)


def _extend(x: Tensor, dim: int, multiple: int) -> Tensor:
    """``x`` with its last row or column repeated up to a whole number of blocks."""
    missing = -x.shape[dim] % multiple
    last = x.narrow(dim, x.shape[dim] - 1, 1)
    return torch.cat([x, *[last] * missing], dim=dim)


def _half(x: Tensor) -> Tensor:
    """Means of 2 x 2 pixels."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).mean(dim=(3, 5))


def _twice(x: Tensor) -> Tensor:
    """Each row and column twice, then three parts of it and one of its neighbor, as libjpeg."""
    for dim in (2, 3):
        n = x.shape[dim]
        before = torch.cat([x.narrow(dim, 0, 1), x.narrow(dim, 0, n - 1)], dim=dim)
        after = torch.cat([x.narrow(dim, 1, n - 1), x.narrow(dim, n - 1, 1)], dim=dim)
        pairs = torch.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], dim=dim + 1)
        x = pairs.flatten(dim, dim + 1)
    return x


def _quantize(x: Tensor, steps: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """The planes ``[B, C, H, W]`` with the coefficients of each block rounded to whole steps."""
    b, c, h, w = x.shape
    cosines = _cosines(x)
    blocks = x.view(b, c, h // _BLOCK, _BLOCK, w // _BLOCK, _BLOCK).transpose(3, 4)
    coefficients = cosines @ blocks @ cosines.T / steps
    back = cosines.T @ (rounding(coefficients) * steps) @ cosines
    return back.transpose(3, 4).reshape(b, c, h, w)


def _cosines(like: Tensor) -> Tensor:
    """The orthonormal cosine transform of 8 pixels, ``[8, 8]``."""
    pixel = torch.arange(_BLOCK, dtype=like.dtype, device=like.device)
    waves = torch.cos((2 * pixel + 1) * pixel[:, None] * math.pi / (2 * _BLOCK))
    scale = torch.full_like(pixel, math.sqrt(2 / _BLOCK))
    scale[0] = math.sqrt(1 / _BLOCK)
    return scale[:, None] * waves
