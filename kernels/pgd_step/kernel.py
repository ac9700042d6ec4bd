"""The same on a GPU: one read of each input, one write of each output.

The address of every entry is computed in 64 bits. Bits equal those of the plain code: nothing is
contracted into a fused multiply-add, and divisions are rounded as IEEE says.
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
    normalized_ptr,
    mean_ptr,
    std_ptr,
    alpha,
    eps,
    lo,
    hi,
    n,
    chunks,
    N_CHANNELS: tl.constexpr,
    CHANNEL_STRIDE: tl.constexpr,
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
    if normalized_ptr is not None:
        # constants: a division by a variable would cost more than the rest of the kernel
        channel = (entries // CHANNEL_STRIDE) % N_CHANNELS
        mean = tl.load(mean_ptr + channel, mask=mask, other=0.0)
        std = tl.load(std_ptr + channel, mask=mask, other=1.0)
        tl.store(normalized_ptr + at, tl.div_rn(out - mean, std), mask=mask)


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


@triton.jit
def _finite(g):
    return tl.where(tl.abs(g) < float("inf"), g, 0.0)


@triton.jit
def _gradient_mean_kernel(grad_ptr, means_ptr, counts_ptr, share, n, chunks, BLOCK: tl.constexpr):
    """What each chunk adds to an image's ``mean |grad|``, and the counts."""
    image, entries, mask = _place(n, chunks, BLOCK)
    g = tl.load(grad_ptr + image * n + entries, mask=mask, other=1.0).to(tl.float32)
    # each share by itself: the sum of large gradients would overflow
    total = tl.sum(tl.where(mask, tl.abs(_finite(g)) * tl.cast(share, tl.float32), 0.0))
    tl.store(means_ptr + tl.program_id(0).to(tl.int64), total)
    if counts_ptr is not None:
        _count(counts_ptr, image, g, mask)


@triton.jit
def _momentum_step_kernel(
    x_adv_ptr,
    x_ptr,
    grad_ptr,
    velocity_ptr,
    means_ptr,
    out_ptr,
    out_velocity_ptr,
    alphas_ptr,
    epses_ptr,
    alpha,
    eps,
    decay,
    lo,
    hi,
    n,
    chunks,
    TARGETED: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_MEANS: tl.constexpr,
):
    image, entries, mask = _place(n, chunks, BLOCK)
    at = image * n + entries
    # the same order of summation in every program: all of an image's divide by one number
    total = tl.zeros([BLOCK_MEANS], tl.float32)
    for first in range(0, chunks, BLOCK_MEANS):
        part = first + tl.arange(0, BLOCK_MEANS)
        total += tl.load(means_ptr + image * chunks + part, mask=part < chunks, other=0.0)
    mean = tl.sum(total)
    g = _finite(tl.load(grad_ptr + at, mask=mask, other=0.0).to(tl.float32))
    direction = tl.where(mean > 0, tl.div_rn(g, tl.where(mean > 0, mean, 1.0)), 0.0)
    velocity = tl.load(velocity_ptr + at, mask=mask, other=0.0)
    velocity = tl.cast(decay, tl.float32) * velocity + direction
    tl.store(out_velocity_ptr + at, velocity, mask=mask)
    x_adv = tl.load(x_adv_ptr + at, mask=mask, other=0.0)
    x = tl.load(x_ptr + at, mask=mask, other=0.0)
    alpha = _of_image(alpha, alphas_ptr, image)
    eps = _of_image(eps, epses_ptr, image)
    moved = x_adv + alpha * _sign(velocity, TARGETED)
    tl.store(
        out_ptr + at,
        _project(moved, x, eps, tl.cast(lo, tl.float32), tl.cast(hi, tl.float32)),
        mask=mask,
    )
