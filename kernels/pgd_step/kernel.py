"""Triton kernels of the steps, which read each input once and write each output once.

Offsets are computed in 64 bits. The results equal those of the plain implementation bit for bit,
since nothing is contracted into a fused multiply-add.
"""

import triton
import triton.language as tl


@triton.jit
def _place(n, chunks, BLOCK: tl.constexpr):
    """Return this program's image, the entries it processes, and their mask."""
    program = tl.program_id(0).to(tl.int64)
    image = program // chunks
    entries = (program - image * chunks) * BLOCK + tl.arange(0, BLOCK)
    return image, entries, entries < n


@triton.jit
def _of_image(value, values_ptr, image):
    """Return this image's value: an entry of the tensor if given, otherwise the number."""
    if values_ptr is not None:
        return tl.load(values_ptr + image).to(tl.float32)
    else:
        return tl.cast(value, tl.float32)


@triton.jit
def _sign(g, TARGETED: tl.constexpr):
    """Return -1, 0 or 1; 0 for NaN."""
    up = (g > 0).to(tl.float32) - (g < 0).to(tl.float32)
    if TARGETED:
        return -up
    else:
        return up


@triton.jit
def _clamp(value, lo, hi):
    """Clamp, propagating NaN as torch does."""
    value = tl.maximum(value, lo, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(value, hi, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _project(moved, x, eps, lo, hi):
    return _clamp(x + _clamp(moved - x, -eps, eps), lo, hi)


@triton.jit
def _count(counts_ptr, image, g, mask):
    """Add to the counts with integer atomics, whose order does not change the result."""
    zero = tl.sum((mask & (g == 0)).to(tl.int32))
    # true for NaN, which compares as false, and for infinities
    bad = tl.sum((mask & ~(tl.abs(g) < float("inf"))).to(tl.int32))
    tl.atomic_add(counts_ptr + 2 * image, zero.to(tl.int64), mask=zero > 0, sem="relaxed")
    tl.atomic_add(counts_ptr + 2 * image + 1, bad.to(tl.int64), mask=bad > 0, sem="relaxed")


@triton.jit
def _pgd_step_kernel(
    x_adv_ptr,
    x_ptr,
    grad_ptr,
    out_ptr,
    alphas_ptr,
    epses_ptr,
    counts_ptr,
    alpha,
    eps,
    lo,
    hi,
    n,
    chunks,
    TARGETED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    image, entries, mask = _place(n, chunks, BLOCK)
    at = image * n + entries
    x_adv = tl.load(x_adv_ptr + at, mask=mask, other=0.0)
    x = tl.load(x_ptr + at, mask=mask, other=0.0)
    g = tl.load(grad_ptr + at, mask=mask, other=1.0).to(tl.float32)
    alpha = _of_image(alpha, alphas_ptr, image)
    eps = _of_image(eps, epses_ptr, image)
    moved = x_adv + alpha * _sign(g, TARGETED)
    out = _project(moved, x, eps, tl.cast(lo, tl.float32), tl.cast(hi, tl.float32))
    tl.store(out_ptr + at, out, mask=mask)
    if counts_ptr is not None:
        _count(counts_ptr, image, g, mask)


@triton.jit
def _apgd_step_kernel(
    x_adv_ptr,
    x_prev_ptr,
    x_ptr,
    grad_ptr,
    out_ptr,
    alphas_ptr,
    epses_ptr,
    counts_ptr,
    alpha,
    eps,
    momentum,
    inertia,
    lo,
    hi,
    n,
    chunks,
    TARGETED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    image, entries, mask = _place(n, chunks, BLOCK)
    at = image * n + entries
    x_adv = tl.load(x_adv_ptr + at, mask=mask, other=0.0)
    x_prev = tl.load(x_prev_ptr + at, mask=mask, other=0.0)
    x = tl.load(x_ptr + at, mask=mask, other=0.0)
    g = tl.load(grad_ptr + at, mask=mask, other=1.0).to(tl.float32)
    alpha = _of_image(alpha, alphas_ptr, image)
    eps = _of_image(eps, epses_ptr, image)
    lo, hi = tl.cast(lo, tl.float32), tl.cast(hi, tl.float32)
    tried = _project(x_adv + alpha * _sign(g, TARGETED), x, eps, lo, hi)
    moved = x_adv + (tried - x_adv) * tl.cast(momentum, tl.float32)
    moved = moved + (x_adv - x_prev) * tl.cast(inertia, tl.float32)
    tl.store(out_ptr + at, _project(moved, x, eps, lo, hi), mask=mask)
    if counts_ptr is not None:
        _count(counts_ptr, image, g, mask)
