"""Triton kernels of NAP's feature term; the forward and the backward pass read each input once.

One launch covers all layers: a kernel takes tuples of pointers and chooses its layer's. Offsets are
computed in 64 bits. All sums have a fixed order: two runs give the same bits.
"""

import triton
import triton.language as tl


@triton.jit
def _of_layer(ptrs, layer):
    """Return one of a tuple's pointers; the position is not known when the kernel is compiled."""
    found = ptrs[0]
    for i in tl.static_range(1, len(ptrs)):
        found = tl.where(layer == i, ptrs[i], found)
    return found


@triton.jit
def _row_sums_kernel(
    a_ptrs, b_ptrs, sums_ptr, rows, n, a_stride, b_stride, span, splits, BLOCK: tl.constexpr
):
    """Compute five sums over one of the ``splits`` parts of a row, each ``span`` entries long.

    Each pair of tensors has ``rows`` rows; the sums have the order of the tuples.
    """
    program = tl.program_id(0).to(tl.int64)
    row = program // splits
    split = program - row * splits
    sums_ptr += row * 5 * splits + split
    layer = row // rows
    row -= layer * rows
    a_ptr, b_ptr = _of_layer(a_ptrs, layer), _of_layer(b_ptrs, layer)
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
    tl.store(sums_ptr, tl.sum(square_a))
    tl.store(sums_ptr + splits, tl.sum(square_b))
    tl.store(sums_ptr + 2 * splits, tl.sum(square_difference))
    tl.store(sums_ptr + 3 * splits, tl.sum(difference_of_squares))
    tl.store(sums_ptr + 4 * splits, tl.sum(product))


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
    a_ptrs,
    b_ptrs,
    da_ptrs,
    db_ptrs,
    rows,
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
    norms_ptr += row * 4
    layer = row // rows
    row -= layer * rows
    a_ptr, b_ptr = _of_layer(a_ptrs, layer), _of_layer(b_ptrs, layer)
    a = tl.load(a_ptr + row * a_stride + entries, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + row * b_stride + entries, mask=mask, other=0.0).to(tl.float32)
    n_a, n_b = tl.load(norms_ptr), tl.load(norms_ptr + 1)
    gap, distance = tl.load(norms_ptr + 2), tl.load(norms_ptr + 3)
    zero = (n_a == 0) | (n_b == 0)
    n_a, n_b = tl.where(zero, 1.0, n_a), tl.where(zero, 1.0, n_b)
    grad = tl.where(zero, 0.0, tl.load(grad_ptr + row % samples))
    apart = (a - b) * (1.0 / tl.maximum(n_a, n_b))
    along = gap / n_a / n_b
    along_a, along_b = tl.where(n_a < n_b, along, 0.0), tl.where(n_a < n_b, 0.0, along)
    if da_ptrs is not None:
        da_ptr = _of_layer(da_ptrs, layer)
        da = grad / n_a * (apart - (along_a + distance / n_a) * a - along_b * b)
        tl.store(da_ptr + row * n + entries, da, mask=mask)
    if db_ptrs is not None:
        db_ptr = _of_layer(db_ptrs, layer)
        db = grad / n_b * ((along_b - distance / n_b) * b + along_a * a - apart)
        tl.store(db_ptr + row * n + entries, db, mask=mask)
