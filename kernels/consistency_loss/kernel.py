"""Triton kernels of CAPT's loss; the forward and the backward kernel read each row of logits once.

A program of the forward kernel loops over the classes of one sample. It computes sums relative to
the running maximum of the logits and rescales them when the maximum grows. Offsets are computed in
64 bits.
"""

import triton
import triton.language as tl


@triton.jit
def _offset(row, stride, ALIGNED: tl.constexpr):
    """Return a row's offset; Triton can't infer that rows of 1,000 classes are 16-byte aligned."""
    if ALIGNED:
        return tl.multiple_of(row * stride, 8)
    else:
        return row * stride


@triton.jit
def _reference(largest):
    """Return the value to subtract from a row: its maximum, or 0 if all classes so far are -inf."""
    return tl.where(largest == float("-inf"), 0.0, largest)


@triton.jit
def _advance(largest, total, logits):
    """Update the running maximum and the sum of exponentials with one block of logits.

    Also return the factor that rescales the previous sums, the block's shifted logits, and their
    exponentials.
    """
    largest_now = tl.maximum(largest, tl.max(logits, axis=0))
    reference = _reference(largest_now)
    keep = tl.exp(largest - reference)
    shifted = logits - reference
    weight = tl.exp(shifted)
    return largest_now, total * keep + tl.sum(weight, axis=0), keep, shifted, weight


@triton.jit
def _expect(expected, total, keep, moved_first, moved_second, weight, first, second):
    """Update the running sum ``sum exp(first) * (first - second)`` with one block.

    Args:
        expected, total: this sum and that of the exponentials, relative to the old references.
        keep: factor that rescales both.
        moved_first, moved_second: increase of the two references.
        weight, first, second: the block's exponentials and shifted logits.
    """
    before = keep * (expected - total * (moved_first - moved_second))
    before = tl.where(keep == 0.0, 0.0, before)
    terms = tl.where(weight == 0.0, 0.0, weight * (first - second))
    return before + tl.sum(terms, axis=0)


@triton.jit
def _divergence(expected, adv_total, target_total, REVERSED: tl.constexpr):
    # IEEE division: equal totals must give a logarithm of exactly 0
    if REVERSED:
        return expected / target_total - tl.log(tl.div_rn(target_total, adv_total))
    else:
        return expected / adv_total - tl.log(tl.div_rn(adv_total, target_total))


@triton.jit
def _weighted(weight, value):
    """Return ``weight * value``, and 0 for a weight of 0 even if the value is infinite."""
    return tl.where(weight == 0.0, 0.0, weight * value)


@triton.jit
def _positive(value):
    """Clamp a divergence, which rounding can make negative, to at least 0; keep NaN."""
    return tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _of_sample(value, values_ptr, row):
    """Return this sample's value: an entry of the tensor if given, otherwise the number."""
    if values_ptr is not None:
        return tl.load(values_ptr + row).to(tl.float32)
    else:
        return tl.cast(value, tl.float32)


@triton.jit
def _consistency_loss_kernel(
    adv_ptr,
    clean_ptr,
    frozen_ptr,
    labels_ptr,
    alphas_ptr,
    lams_ptr,
    loss_ptr,
    terms_ptr,
    statistics_ptr,
    alpha,
    lam,
    classes,
    adv_stride,
    clean_stride,
    frozen_stride,
    CE_CLEAN: tl.constexpr,
    TRAIN_REVERSED: tl.constexpr,
    FROZEN_REVERSED: tl.constexpr,
    STATISTICS: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    if ALIGNED:
        classes = classes // 8 * 8  # same value; a divisibility hint on an argument is lost
    adv_ptr += _offset(row, adv_stride, ALIGNED)
    clean_ptr += _offset(row, clean_stride, ALIGNED)
    frozen_ptr += _offset(row, frozen_stride, ALIGNED)
    low = float("-inf")
    x_max = tl.full([], float("-inf"), tl.float32)
    y_max, z_max = x_max, x_max
    x_sum = tl.full([], 0.0, tl.float32)
    y_sum, z_sum, train, frozen = x_sum, x_sum, x_sum, x_sum
    for first in range(0, classes, BLOCK):
        at = first + tl.arange(0, BLOCK)
        mask = at < classes
        x = tl.load(adv_ptr + at, mask=mask, other=low).to(tl.float32)
        y = tl.load(clean_ptr + at, mask=mask, other=low).to(tl.float32)
        z = tl.load(frozen_ptr + at, mask=mask, other=low).to(tl.float32)
        x_old, y_old, z_old = x_sum, y_sum, z_sum
        x_from, y_from, z_from = _reference(x_max), _reference(y_max), _reference(z_max)
        x_max, x_sum, x_keep, x, x_weight = _advance(x_max, x_sum, x)
        y_max, y_sum, y_keep, y, y_weight = _advance(y_max, y_sum, y)
        z_max, z_sum, z_keep, z, z_weight = _advance(z_max, z_sum, z)
        x_moved = _reference(x_max) - x_from
        y_moved = _reference(y_max) - y_from
        z_moved = _reference(z_max) - z_from
        if TRAIN_REVERSED:
            train = _expect(train, y_old, y_keep, y_moved, x_moved, y_weight, y, x)
        else:
            train = _expect(train, x_old, x_keep, x_moved, y_moved, x_weight, x, y)
        if FROZEN_REVERSED:
            frozen = _expect(frozen, z_old, z_keep, z_moved, x_moved, z_weight, z, x)
        else:
            frozen = _expect(frozen, x_old, x_keep, x_moved, z_moved, x_weight, x, z)
    train = _divergence(train, x_sum, y_sum, TRAIN_REVERSED)
    frozen = _divergence(frozen, x_sum, z_sum, FROZEN_REVERSED)
    label = tl.load(labels_ptr + row)
    valid = (label >= 0) & (label < classes)
    if CE_CLEAN:
        chosen = tl.load(clean_ptr + label, mask=valid, other=0.0).to(tl.float32)
        cross_entropy = tl.log(y_sum) - (chosen - _reference(y_max))
    else:
        chosen = tl.load(adv_ptr + label, mask=valid, other=0.0).to(tl.float32)
        cross_entropy = tl.log(x_sum) - (chosen - _reference(x_max))
    cross_entropy = tl.where(valid, cross_entropy, float("nan"))
    share, scale = _of_sample(alpha, alphas_ptr, row), _of_sample(lam, lams_ptr, row)
    train_weight, frozen_weight = scale * (1.0 - share), scale * share
    loss = cross_entropy + _weighted(train_weight, _positive(train))
    tl.store(loss_ptr + row, loss + _weighted(frozen_weight, _positive(frozen)))
    tl.store(terms_ptr + row * 3, cross_entropy)
    tl.store(terms_ptr + row * 3 + 1, _positive(train))
    tl.store(terms_ptr + row * 3 + 2, _positive(frozen))
    # same order as in `eager.STATISTICS`
    statistics_ptr += row * STATISTICS
    tl.store(statistics_ptr, _reference(x_max))
    tl.store(statistics_ptr + 1, _reference(y_max))
    tl.store(statistics_ptr + 2, _reference(z_max))
    tl.store(statistics_ptr + 3, tl.log(x_sum))
    tl.store(statistics_ptr + 4, tl.log(y_sum))
    tl.store(statistics_ptr + 5, tl.log(z_sum))
    tl.store(statistics_ptr + 6, train)
    tl.store(statistics_ptr + 7, frozen)
    tl.store(statistics_ptr + 8, train_weight)
    tl.store(statistics_ptr + 9, frozen_weight)


@triton.jit
def _log_probability(logits_ptr, statistics_ptr, which: tl.constexpr, at, mask):
    logits = tl.load(logits_ptr + at, mask=mask, other=0.0).to(tl.float32)
    return (logits - tl.load(statistics_ptr + which)) - tl.load(statistics_ptr + 3 + which)


@triton.jit
def _gradients(adv, target, divergence, REVERSED: tl.constexpr):
    """Return a KL's gradients w.r.t. adversarial and target logits, from log-probabilities."""
    p, q = tl.exp(adv), tl.exp(target)
    if REVERSED:
        in_target = tl.where(q == 0.0, 0.0, q * ((target - adv) - divergence))
        return p - q, in_target
    else:
        in_adv = tl.where(p == 0.0, 0.0, p * ((adv - target) - divergence))
        return in_adv, q - p


@triton.jit
def _consistency_loss_backward_kernel(
    grad_ptr,
    adv_ptr,
    clean_ptr,
    frozen_ptr,
    labels_ptr,
    statistics_ptr,
    adv_grad_ptr,
    clean_grad_ptr,
    frozen_grad_ptr,
    classes,
    chunks,
    adv_stride,
    clean_stride,
    frozen_stride,
    CE_CLEAN: tl.constexpr,
    TRAIN_REVERSED: tl.constexpr,
    FROZEN_REVERSED: tl.constexpr,
    DETACH: tl.constexpr,
    STATISTICS: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    row = program // chunks
    if ALIGNED:
        classes = classes // 8 * 8  # same value; a divisibility hint on an argument is lost
    at = (program - row * chunks) * BLOCK + tl.arange(0, BLOCK)
    mask = at < classes
    statistics_ptr += row * STATISTICS
    adv_ptr += _offset(row, adv_stride, ALIGNED)
    clean_ptr += _offset(row, clean_stride, ALIGNED)
    frozen_ptr += _offset(row, frozen_stride, ALIGNED)
    adv = _log_probability(adv_ptr, statistics_ptr, 0, at, mask)
    clean = _log_probability(clean_ptr, statistics_ptr, 1, at, mask)
    frozen = _log_probability(frozen_ptr, statistics_ptr, 2, at, mask)
    label = tl.load(labels_ptr + row)
    grad = tl.load(grad_ptr + row)
    grad = tl.where((label >= 0) & (label < classes), grad, float("nan"))
    one_hot = (at == label).to(tl.float32)
    train_weight = grad * tl.load(statistics_ptr + 8)
    frozen_weight = grad * tl.load(statistics_ptr + 9)
    divergence = tl.load(statistics_ptr + 6)
    train_adv, train_clean = _gradients(adv, clean, divergence, TRAIN_REVERSED)
    divergence = tl.load(statistics_ptr + 7)
    frozen_adv, frozen_frozen = _gradients(adv, frozen, divergence, FROZEN_REVERSED)
    out = _offset(row, classes, ALIGNED) + at
    if adv_grad_ptr is not None:
        found = _weighted(train_weight, train_adv) + _weighted(frozen_weight, frozen_adv)
        if not CE_CLEAN:
            found += grad * (tl.exp(adv) - one_hot)
        tl.store(adv_grad_ptr + out, found, mask=mask)
    if clean_grad_ptr is not None:
        found = tl.zeros([BLOCK], tl.float32)
        if CE_CLEAN:
            found += grad * (tl.exp(clean) - one_hot)
        if not DETACH:
            found += _weighted(train_weight, train_clean)
        tl.store(clean_grad_ptr + out, found, mask=mask)
    if frozen_grad_ptr is not None:
        found = tl.zeros([BLOCK], tl.float32)
        if not DETACH:
            found += _weighted(frozen_weight, frozen_frozen)
        tl.store(frozen_grad_ptr + out, found, mask=mask)
