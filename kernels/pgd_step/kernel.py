"""The same on a GPU: one read of each input, one write of each output.

The address of every entry is computed in 64 bits. Bits equal those of the plain code: nothing is
contracted into a fused multiply-add.
"""

import triton
import triton.language as tl


@triton.jit
def _place(n, chunks, BLOCK: tl.constexpr):
    """The image of this program, and the entries of it that it handles."""
    program = tl.program_id(0).to(tl.int64)
    image = program // chunks
    entries = (program - image * chunks) * BLOCK + tl.arange(0, BLOCK)
    return image, entries, entries < n


@triton.jit
def _of_image(value, values_ptr, image):
    """The number that holds for this image."""
    if values_ptr is not None:
        return tl.load(values_ptr + image).to(tl.float32)
    else:
        return tl.cast(value, tl.float32)


@triton.jit
def _sign(g, TARGETED: tl.constexpr):
    """-1, 0 or 1; 0 for NaN."""
    up = (g > 0).to(tl.float32) - (g < 0).to(tl.float32)
    if TARGETED:
        return -up
    else:
        return up


@triton.jit
def _clamp(value, lo, hi):
    """NaN stays NaN, as in torch."""
    value = tl.maximum(value, lo, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(value, hi, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _project(moved, x, eps, lo, hi):
    return _clamp(x + _clamp(moved - x, -eps, eps), lo, hi)


@triton.jit
def _count(counts_ptr, image, g, mask):
    """Integer atomics: their order changes nothing."""
    zero = tl.sum((mask & (g == 0)).to(tl.int32))
    # NaN and infinity alone are no finite number minus themselves
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
