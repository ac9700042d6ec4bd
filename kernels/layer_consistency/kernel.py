"""Triton kernels of NAP's feature term; the forward and the backward pass read each input once.

Offsets are computed in 64 bits. All sums have a fixed order: two runs give the same bits.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import Layers, LayersBackward
from .memory_format import gradient_like, order_of

_BLOCK = 1024
# the default of enable_fp_fusion differs between Triton versions
_LAUNCH = {"num_warps": 4, "enable_fp_fusion": True}
_BLOCK_GRADIENT = 2048
# programs that fill the largest GPUs (132 to 304 multiprocessors) several times over: if there are
# fewer rows, each row is split into parts of at least four blocks to reach this number
_PROGRAMS = 2048
_MAX_SPLITS = 64
_MIN_BLOCKS = 4


@triton.jit
def _row_sums_kernel(
    a_ptr, b_ptr, sums_ptr, n, a_stride, b_stride, span, splits, BLOCK: tl.constexpr
):
    """Compute five sums over one of the ``splits`` parts of a row, each ``span`` entries long."""
    program = tl.program_id(0).to(tl.int64)
    row = program // splits
    split = program - row * splits
    square_a = tl.zeros([BLOCK], tl.float32)
    square_b = tl.zeros([BLOCK], tl.float32)
    square_difference = tl.zeros([BLOCK], tl.float32)
    difference_of_squares = tl.zeros([BLOCK], tl.float32)
    product = tl.zeros([BLOCK], tl.float32)
    for done in range(0, span, BLOCK):
        entries = split * span + done + tl.arange(0, BLOCK)
        mask = entries < n
        a = tl.load(a_ptr + row * a_stride + entries, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(b_ptr + row * b_stride + entries, mask=mask, other=0.0).to(tl.float32)
        difference = a - b
        square_a += a * a
        square_b += b * b
        square_difference += difference * difference
        difference_of_squares += difference * (a + b)
        product += a * b
    at = sums_ptr + row * 5 * splits + split
    tl.store(at, tl.sum(square_a))
    tl.store(at + splits, tl.sum(square_b))
    tl.store(at + 2 * splits, tl.sum(square_difference))
    tl.store(at + 3 * splits, tl.sum(difference_of_squares))
    tl.store(at + 4 * splits, tl.sum(product))


@triton.jit
def _total(sums_ptr, row, which, splits, mask, SPLITS: tl.constexpr):
    """Add up the parts of one of the five sums, for each row, ``[LAYERS]``."""
    split = tl.arange(0, SPLITS)
    at = sums_ptr + (row * 5 + which)[:, None] * splits + split[None, :]
    parts = tl.load(at, mask=mask[:, None] & (split < splits)[None, :], other=0.0)
    return tl.sum(parts, axis=1)


@triton.jit
def _row_distance_kernel(
    sums_ptr,
    value_ptr,
    norms_ptr,
    samples,
    layers,
    splits,
    LAYERS: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Compute the norms and distances of one sample's rows, and the sum of the distances."""
    sample = tl.program_id(0).to(tl.int64)
    value = tl.zeros([LAYERS], tl.float32)
    for first in range(0, layers, LAYERS):
        layer = first + tl.arange(0, LAYERS)
        mask = layer < layers
        row = layer * samples + sample
        n_a = tl.sqrt_rn(_total(sums_ptr, row, 0, splits, mask, SPLITS))
        n_b = tl.sqrt_rn(_total(sums_ptr, row, 1, splits, mask, SPLITS))
        zero = (n_a == 0) | (n_b == 0)
        square_difference = _total(sums_ptr, row, 2, splits, mask, SPLITS)
        difference_of_squares = _total(sums_ptr, row, 3, splits, mask, SPLITS)
        product = _total(sums_ptr, row, 4, splits, mask, SPLITS)
        gap = difference_of_squares / tl.where(zero, 1.0, n_a + n_b)
        divisor_a, divisor_b = tl.where(zero, 1.0, n_a), tl.where(zero, 1.0, n_b)
        near = (square_difference - gap * gap) / divisor_a / divisor_b * 0.5
        far = 1.0 - product / divisor_a / divisor_b
        distance = tl.where(gap * gap > n_a * n_b, far, near)
        distance = tl.maximum(distance, 0.0, propagate_nan=tl.PropagateNan.ALL)
        distance = tl.where(zero, 1.0, distance)
        at = norms_ptr + row * 4
        tl.store(at, n_a, mask=mask)
        tl.store(at + 1, n_b, mask=mask)
        tl.store(at + 2, gap, mask=mask)
        tl.store(at + 3, distance, mask=mask)
        value += tl.where(mask, distance, 0.0)
    tl.store(value_ptr + sample, tl.sum(value))


@triton.jit
def _row_gradient_kernel(
    grad_ptr,
    norms_ptr,
    a_ptr,
    b_ptr,
    da_ptr,
    db_ptr,
    samples,
    n,
    a_stride,
    b_stride,
    chunks,
    BLOCK: tl.constexpr,
):
    """Compute ``p (a - b) + q a + r b`` with per-row factors: see `eager._coefficients`."""
    program = tl.program_id(0).to(tl.int64)
    row = program // chunks
    entries = (program - row * chunks) * BLOCK + tl.arange(0, BLOCK)
    mask = entries < n
    a = tl.load(a_ptr + row * a_stride + entries, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + row * b_stride + entries, mask=mask, other=0.0).to(tl.float32)
    n_a, n_b = tl.load(norms_ptr + row * 4), tl.load(norms_ptr + row * 4 + 1)
    gap, distance = tl.load(norms_ptr + row * 4 + 2), tl.load(norms_ptr + row * 4 + 3)
    zero = (n_a == 0) | (n_b == 0)
    n_a, n_b = tl.where(zero, 1.0, n_a), tl.where(zero, 1.0, n_b)
    grad = tl.where(zero, 0.0, tl.load(grad_ptr + row % samples))
    apart = (a - b) * (1.0 / tl.maximum(n_a, n_b))
    along = gap / n_a / n_b
    along_a, along_b = tl.where(n_a < n_b, along, 0.0), tl.where(n_a < n_b, 0.0, along)
    if da_ptr is not None:
        da = grad / n_a * (apart - (along_a + distance / n_a) * a - along_b * b)
        tl.store(da_ptr + row * n + entries, da, mask=mask)
    if db_ptr is not None:
        db = grad / n_b * ((along_b - distance / n_b) * b + along_a * a - apart)
        tl.store(db_ptr + row * n + entries, db, mask=mask)


def _dense(tensor: Tensor, order: list[int]) -> Tensor:
    """Return a view in which each sample is contiguous, or a copy if there is no such view."""
    tensor = tensor.permute(order)
    return tensor if tensor[0].is_contiguous() else tensor.contiguous()


def _splits(rows: int, n: int) -> int:
    """Return the number of parts into which a row of ``n`` entries is split."""
    enough = triton.cdiv(_PROGRAMS, rows)
    return min(_MAX_SPLITS, enough, max(1, triton.cdiv(n, _BLOCK) // _MIN_BLOCKS))


def launch_layer_consistency(layers: Layers) -> tuple[Tensor, Tensor]:
    """Launch the kernels of `eager.layer_consistency`: one per pair of tensors, and one for all."""
    a, b, samples = layers
    device = a[0].device
    rows = sum(len(x) for x in a)
    value = torch.empty(samples, dtype=torch.float32, device=device)
    norms = torch.empty(rows, 4, dtype=torch.float32, device=device)
    if not samples:
        return value, norms
    splits = max(_splits(len(x), x[0].numel()) for x in a)
    sums = torch.empty(rows, 5, splits, dtype=torch.float32, device=device)
    for x, y, part in zip(a, b, sums.split([len(x) for x in a]), strict=True):
        order, n = order_of(x), x[0].numel()
        x, y = _dense(x, order), _dense(y, order)
        span = triton.cdiv(triton.cdiv(n, _BLOCK), splits) * _BLOCK
        _row_sums_kernel[(len(x) * splits,)](
            x, y, part, n, x.stride(0), y.stride(0), span, splits, BLOCK=_BLOCK, **_LAUNCH
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
        num_warps=8,
        enable_fp_fusion=True,
    )
    return value, norms


def launch_layer_consistency_backward(given: LayersBackward) -> list[Tensor]:
    """Launch the kernels of `eager.layer_consistency_backward`: one per pair of tensors."""
    grad, norms, a, b, wanted = given
    grad = grad.contiguous()
    places: list[Any] = [
        gradient_like(x) if want else None for x, want in zip([*a, *a], wanted, strict=True)
    ]
    of_rows = norms.split([len(x) for x in a])
    for x, y, part, da, db in zip(a, b, of_rows, places[: len(a)], places[len(a) :], strict=True):
        if not x.numel() or (da is None and db is None):
            continue
        order, n = order_of(x), x[0].numel()
        x, y = _dense(x, order), _dense(y, order)
        chunks = triton.cdiv(n, _BLOCK_GRADIENT)
        _row_gradient_kernel[(len(x) * chunks,)](
            grad,
            part,
            x,
            y,
            da,
            db,
            len(grad),
            n,
            x.stride(0),
            y.stride(0),
            chunks,
            BLOCK=_BLOCK_GRADIENT,
            **_LAUNCH,
        )
    return [place for place in places if place is not None]
