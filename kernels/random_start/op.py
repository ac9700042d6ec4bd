"""Schema, implementations, fake, and the public function."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from .._dispatch import Impl, define, resolve
from . import eager

Sides: TypeAlias = Literal["two-sided", "one-sided"]


def _launch(*arguments: object) -> Tensor:
    from .kernel import launch_random_start

    return launch_random_start(*arguments)  # type: ignore[arg-type]


_random_start = define(
    "random_start(Tensor x, Tensor indices, Tensor key, Tensor? epses, float eps, float lo, "
    "float hi, bool one_sided) -> Tensor",
    eager=eager.random_start,
    launch=_launch,
    fake=lambda x, *_: torch.empty_like(x, memory_format=torch.contiguous_format),
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
        TypeError: dtypes other than said above.
        ValueError: shapes or devices that don't fit, a negative ``eps``, ``lo > hi``, other sides.
        RuntimeError: ``impl="triton"`` where it can't run.
    """
    _check(x, indices, key, eps, sides, lo, hi)
    epses = eps.detach().contiguous() if isinstance(eps, Tensor) else None
    radius = 0.0 if isinstance(eps, Tensor) else float(eps)
    one_sided = sides == "one-sided"
    chosen = resolve(impl, x)
    return _random_start(chosen, x.detach(), indices, key, epses, radius, lo, hi, one_sided)


def _check(
    x: Tensor,
    indices: Tensor,
    key: Tensor,
    eps: float | Tensor,
    sides: str,
    lo: float,
    hi: float,
) -> None:
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x must be float32, as less leaves the eps-ball; got {x.dtype}")
    if x.ndim < 1:
        raise ValueError("x must be [B, ...], got a tensor without dimensions")
    for name, tensor, shape in (("indices", indices, x.shape[:1]), ("key", key, (2,))):
        if tensor.shape != shape:
            raise ValueError(f"{name} must be {list(shape)}, got {list(tensor.shape)}")
        if tensor.dtype != torch.int64:
            raise TypeError(f"{name} must be int64, got {tensor.dtype}")
    if isinstance(eps, Tensor):
        if eps.shape != x.shape[:1] or not eps.is_floating_point():
            raise ValueError(
                f"eps must be a number or floating [{len(x)}], got {eps.dtype} {list(eps.shape)}"
            )
    elif not eps >= 0:
        raise ValueError(f"eps must not be negative, got {eps}")
    for name, value in (("indices", indices), ("key", key), ("eps", eps)):
        if isinstance(value, Tensor) and value.device != x.device:
            raise ValueError(
                f"{name} must be on x's device {x.device}, got {value.device}: move it there"
            )
    if sides not in ("two-sided", "one-sided"):
        raise ValueError(f"sides must be 'two-sided' or 'one-sided', got {sides!r}")
    if lo > hi:
        raise ValueError(f"lo must not be above hi, got {lo} and {hi}")
