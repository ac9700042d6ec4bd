"""Schema, implementations, fake, and the public function."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from .._dispatch import Impl, define, resolve
from . import eager
from .arguments import Start
from .check import check_start

Sides: TypeAlias = Literal["two-sided", "one-sided"]


_random_start = define(
    "random_start",
    Start,
    "Tensor",
    eager=eager.random_start,
    launch=".kernel:launch_random_start",
    fake=lambda start: torch.empty_like(start.x, memory_format=torch.contiguous_format),
)


def random_start(
    x: Tensor,
    indices: Tensor,
    key: Tensor,
    *,
    eps: float | Tensor,
    sides: Sides = "two-sided",
    lo: float = 0.0,
    hi: float = 1.0,
    impl: Impl = "auto",
) -> Tensor:
    """``clip(x + noise, lo, hi)`` with noise uniform in the eps-ball: where an attack starts.

    The noise of an image is a function of seed, image index and restart alone, through
    Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): it is
    the same in any batch and on any device. The key is a tensor: a replayed CUDA graph reads it
    anew, where a Python number would be frozen into it.

    Args:
        x: images ``[B, ...]``, float32 (float64 for tests); not changed.
        indices: the images' indices in their data set, int64 ``[B]``.
        key: seed and restart, int64 ``[2]``, on ``x``'s device. All 64 bits of the seed count, and
            32 of the restart.
        eps: radius in pixel units; one number, or one for each image, ``[B]``.
        sides: ``"two-sided"`` draws from [-eps, eps], ``"one-sided"`` from [0, eps].
        lo, hi: the box of valid pixels.
        impl: ``"triton"`` (a GPU kernel), ``"torch"`` (plain code, any device), or ``"auto"``: the
            kernel for float32 images on a GPU, plain code elsewhere. Bits are the same.

    Returns:
        The start, a new contiguous tensor of ``x``'s shape and dtype.

    Raises:
        TypeError: types or dtypes other than said above.
        ValueError: shapes or devices that don't fit, an ``eps`` that is negative or not finite,
            ``lo > hi``, other sides.
        RuntimeError: ``impl="triton"`` where it can't run.
    """
    check_start(x, indices, key, eps, sides, lo, hi)
    epses = eps.detach().contiguous() if isinstance(eps, Tensor) else None
    radius = 0.0 if isinstance(eps, Tensor) else float(eps)
    one_sided = sides == "one-sided"
    start = Start(x.detach(), indices, key, epses, radius, float(lo), float(hi), one_sided)
    return _random_start(resolve(impl, x), start)
