"""Op registration and public function of the random start."""

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
    """Return an attack's random start ``clip(x + noise, lo, hi)``, noise uniform in the eps-ball.

    The noise of an image depends only on the seed, the image index and the restart. It is generated
    with Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) and
    is the same in any batch and on any device. The key is a tensor because a replayed CUDA graph
    reads it again, while a Python number would be constant in the graph.

    Args:
        x: images ``[B, ...]``, float32 (float64 for tests); not modified.
        indices: the images' indices in their data set, int64 ``[B]``.
        key: seed and restart, int64 ``[2]``, on the device of ``x``. All 64 bits of the seed and
            the lower 32 bits of the restart are used.
        eps: radius in pixel units; a number, or one per image, ``[B]``.
        sides: ``"two-sided"`` draws from [-eps, eps], ``"one-sided"`` from [0, eps].
        lo, hi: the box of valid pixels.
        impl: ``"triton"`` (a GPU kernel), ``"torch"`` (plain implementation, any device), or
            ``"auto"``: the kernel for float32 images on a GPU, else the plain implementation. All
            give the same bits.

    Returns:
        The start, a new contiguous tensor of the shape and dtype of ``x``.

    Raises:
        TypeError: a type or dtype is not as above.
        ValueError: shapes or devices do not match, ``eps`` is negative or not finite, ``lo > hi``,
            or ``sides`` is unknown.
        RuntimeError: ``impl="triton"`` cannot run.
    """
    check_start(x, indices, key, eps, sides, lo, hi)
    epses = eps.detach().contiguous() if isinstance(eps, Tensor) else None
    radius = 0.0 if isinstance(eps, Tensor) else float(eps)
    one_sided = sides == "one-sided"
    start = Start(x.detach(), indices, key, epses, radius, float(lo), float(hi), one_sided)
    return _random_start(resolve(impl, x), start)
