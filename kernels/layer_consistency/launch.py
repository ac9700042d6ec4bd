"""Launchers of the kernels of NAP's feature term: groups of layers, grids and outputs."""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .arguments import Layers, LayersBackward
from .kernel import _row_distance_kernel, _row_gradient_kernel, _row_sums_kernel
from .memory_format import gradient_like, order_of

_BLOCK = 1024
_BLOCK_GRADIENT = 2048
# the default of enable_fp_fusion differs between Triton versions
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}
# programs that fill the largest GPUs (132 to 304 multiprocessors) several times over: if there are
# fewer rows, each row is split into parts of at least four blocks to reach this number
_PROGRAMS = 2048
_MAX_SPLITS = 64
_MIN_BLOCKS = 4
# pairs of tensors per launch: a kernel has up to four pointers of each, in 4 KiB of arguments
_MAX_LAYERS = 64


class _Pair(NamedTuple):
    """A layer's two tensors, dense in each sample, and its gradients, None if not wanted."""

    a: Tensor
    b: Tensor
    da: Tensor | None = None
    db: Tensor | None = None

    @property
    def row(self) -> int:
        """Number of entries of a row."""
        return self.a[0].numel()

    def alike(self) -> tuple[int, int, int, bool, bool]:
        """Return what the pairs of one launch have in common."""
        strides = self.a.stride(0), self.b.stride(0)
        return self.row, *strides, self.da is None, self.db is None


def _dense(tensor: Tensor, order: list[int]) -> Tensor:
    """Return a view in which each sample is contiguous, or a copy if there is no such view."""
    tensor = tensor.permute(order)
    return tensor if tensor[0].is_contiguous() else tensor.contiguous()


def _pair(a: Tensor, b: Tensor, da: Tensor | None = None, db: Tensor | None = None) -> _Pair:
    order = order_of(a)
    return _Pair(_dense(a, order), _dense(b, order), da, db)


def _launches(pairs: list[_Pair]) -> Iterator[tuple[int, list[_Pair]]]:
    """Yield consecutive pairs that one launch covers, and the number of rows before them.

    Equal layers, as those of an image encoder, take one launch.
    """
    before = 0
    for _, alike in groupby(pairs, _Pair.alike):
        some = list(alike)
        for first in range(0, len(some), _MAX_LAYERS):
            part = some[first : first + _MAX_LAYERS]
            yield before, part
            before += sum(len(pair.a) for pair in part)


def _splits(rows: int, n: int) -> int:
    """Return the number of parts into which a row of ``n`` entries is split."""
    enough = triton.cdiv(_PROGRAMS, rows)
    return min(_MAX_SPLITS, enough, max(1, triton.cdiv(n, _BLOCK) // _MIN_BLOCKS))


def launch_layer_consistency(layers: Layers) -> tuple[Tensor, Tensor]:
    """Launch the kernels of `eager.layer_consistency`: one over the rows, and one over samples."""
    a, b, samples = layers
    device = a[0].device
    rows = sum(len(x) for x in a)
    value = torch.empty(samples, dtype=torch.float32, device=device)
    norms = torch.empty(rows, 4, dtype=torch.float32, device=device)
    if not samples:
        return value, norms
    pairs = [_pair(x, y) for x, y in zip(a, b, strict=True)]
    splits = _splits(rows, max(pair.row for pair in pairs))
    sums = torch.empty(rows, 5, splits, dtype=torch.float32, device=device)
    for before, some in _launches(pairs):
        x, y = some[0][:2]
        _row_sums_kernel[(len(some) * len(x) * splits,)](
            tuple(pair.a for pair in some),
            tuple(pair.b for pair in some),
            sums[before:],
            len(x),
            some[0].row,
            x.stride(0),
            y.stride(0),
            triton.cdiv(triton.cdiv(some[0].row, _BLOCK), splits) * _BLOCK,
            splits,
            BLOCK=_BLOCK,
            **_OPTIONS,
        )
    _row_distance_kernel[(samples,)](
        sums,
        value,
        norms,
        samples,
        rows // samples,
        splits,
        LAYERS=16,
        SPLITS=triton.next_power_of_2(splits),
        **_OPTIONS | {"num_warps": 8},
    )
    return value, norms


def launch_layer_consistency_backward(given: LayersBackward) -> list[Tensor]:
    """Launch the kernel of `eager.layer_consistency_backward`."""
    grad, norms, a, b, wanted = given
    grad = grad.contiguous()
    places = [gradient_like(x) if want else None for x, want in zip([*a, *a], wanted, strict=True)]
    found = [place for place in places if place is not None]
    if not len(grad):
        return found
    sides = zip(a, b, places[: len(a)], places[len(a) :], strict=True)
    for before, some in _launches([_pair(*side) for side in sides]):
        x, y, da, db = some[0]
        if not x.numel() or (da is None and db is None):
            continue
        chunks = triton.cdiv(some[0].row, _BLOCK_GRADIENT)
        _row_gradient_kernel[(len(some) * len(x) * chunks,)](
            grad,
            norms[before:],
            tuple(pair.a for pair in some),
            tuple(pair.b for pair in some),
            None if da is None else tuple(pair.da for pair in some),
            None if db is None else tuple(pair.db for pair in some),
            len(x),
            len(grad),
            some[0].row,
            x.stride(0),
            y.stride(0),
            chunks,
            BLOCK=_BLOCK_GRADIENT,
            **_OPTIONS,
        )
    return found
