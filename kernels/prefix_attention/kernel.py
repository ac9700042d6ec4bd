"""Triton kernels over tiles of queries: no copy of the prefix, no padding, no stored weights.

A tile holds consecutive packed queries of one or more classes. Its suffix keys range from the start
of its first class to its last query, and a mask separates the classes.
"""

import triton
import triton.language as tl

from .tiles import LN2, LOG2E, load_rows, place, product, span, store_rows


@triton.jit
def _attend(q, k, v, seen, scale, largest, total, mixed, PRECISION: tl.constexpr):
    """Update the running softmax, in powers of two, with one block of keys."""
    scores = product(q, tl.trans(k), PRECISION) * scale
    scores = tl.where(seen, scores, float("-inf"))
    larger = tl.maximum(largest, tl.max(scores, 1))
    # 0 for a row that has seen no key yet: -inf minus -inf is NaN
    level = tl.where(larger == float("-inf"), 0.0, larger)
    weights = tl.exp2(scores - level[:, None])
    shrink = tl.exp2(largest - level)
    total = total * shrink + tl.sum(weights, 1)
    mixed = mixed * shrink[:, None]
    mixed += product(weights.to(v.dtype), v, PRECISION)
    return larger, total, mixed


@triton.jit
def _prefix_attention_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    prefix_k_ptr,
    prefix_v_ptr,
    cu_ptr,
    classes_ptr,
    out_ptr,
    lse_ptr,
    scale,
    tiles,
    heads,
    n_queries,
    n_prefix,
    q_prompt,
    q_row,
    q_head,
    k_prompt,
    k_row,
    k_head,
    v_prompt,
    v_row,
    v_head,
    pk_prompt,
    pk_row,
    pk_head,
    pv_prompt,
    pv_row,
    pv_head,
    LAST_ONLY: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tile, head, prompt = place(tiles, heads)
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < n_queries
    first, last = span(rows, n_queries, cu_ptr, classes_ptr, LAST_ONLY)
    q_ptr += prompt * q_prompt + head * q_head
    k_ptr += prompt * k_prompt + head * k_head
    v_ptr += prompt * v_prompt + head * v_head
    prefix_k_ptr += prompt * pk_prompt + head * pk_head
    prefix_v_ptr += prompt * pv_prompt + head * pv_head
    scale = tl.cast(scale, tl.float32) * LOG2E
    q = load_rows(q_ptr, rows, q_row, inside, D, BLOCK_D)
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for begin in range(0, n_prefix, BLOCK_P):
        keys = begin + tl.arange(0, BLOCK_P).to(tl.int64)
        there = keys < n_prefix
        k = load_rows(prefix_k_ptr, keys, pk_row, there, D, BLOCK_D)
        v = load_rows(prefix_v_ptr, keys, pv_row, there, D, BLOCK_D)
        seen = there[None, :]
        largest, total, mixed = _attend(q, k, v, seen, scale, largest, total, mixed, PRECISION)
    end = tl.max(last) + 1
    for begin in range(tl.min(first), end, BLOCK_N):
        keys = begin + tl.arange(0, BLOCK_N)
        there = keys < end
        k = load_rows(k_ptr, keys, k_row, there, D, BLOCK_D)
        v = load_rows(v_ptr, keys, v_row, there, D, BLOCK_D)
        seen = (keys[None, :] >= first[:, None]) & (keys[None, :] <= last[:, None])
        largest, total, mixed = _attend(q, k, v, seen, scale, largest, total, mixed, PRECISION)
    at = (prompt * n_queries + rows) * heads + head
    tl.store(lse_ptr + at, (largest + tl.log2(total)) * LN2, mask=inside)
    out_ptr += (prompt * n_queries * heads + head) * D
    store_rows(out_ptr, rows, heads * D, inside, mixed / total[:, None], D, BLOCK_D)


@triton.jit
def _query_gradient(q, dout, k, v, seen, scale, lse, delta, dq, PRECISION: tl.constexpr):
    """Add the contribution of one block of keys to ``dq / scale``."""
    scores = product(q, tl.trans(k), PRECISION) * scale
    weights = tl.where(seen, tl.exp2(scores - lse[:, None]), 0.0)
    dweights = product(dout, tl.trans(v), PRECISION)
    ds = weights * (dweights - delta[:, None])
    return dq + product(ds.to(k.dtype), k, PRECISION)


@triton.jit
def _query_backward_kernel(
    dout_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    prefix_k_ptr,
    prefix_v_ptr,
    cu_ptr,
    classes_ptr,
    out_ptr,
    lse_ptr,
    delta_ptr,
    dq_ptr,
    scale,
    tiles,
    heads,
    n_queries,
    n_prefix,
    do_prompt,
    do_row,
    do_head,
    q_prompt,
    q_row,
    q_head,
    k_prompt,
    k_row,
    k_head,
    v_prompt,
    v_row,
    v_head,
    pk_prompt,
    pk_row,
    pk_head,
    pv_prompt,
    pv_row,
    pv_head,
    LAST_ONLY: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute ``delta = sum(dout * out)``, which all gradients need, and ``dq`` if wanted."""
    tile, head, prompt = place(tiles, heads)
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < n_queries
    offset = (prompt * n_queries * heads + head) * D
    dout_ptr += prompt * do_prompt + head * do_head
    dout = load_rows(dout_ptr, rows, do_row, inside, D, BLOCK_D)
    out = load_rows(out_ptr + offset, rows, heads * D, inside, D, BLOCK_D)
    delta = tl.sum(dout.to(tl.float32) * out.to(tl.float32), 1)
    at = (prompt * n_queries + rows) * heads + head
    tl.store(delta_ptr + at, delta, mask=inside)
    if dq_ptr is not None:
        first, last = span(rows, n_queries, cu_ptr, classes_ptr, LAST_ONLY)
        lse = tl.load(lse_ptr + at, mask=inside, other=0.0) * LOG2E
        q_ptr += prompt * q_prompt + head * q_head
        k_ptr += prompt * k_prompt + head * k_head
        v_ptr += prompt * v_prompt + head * v_head
        prefix_k_ptr += prompt * pk_prompt + head * pk_head
        prefix_v_ptr += prompt * pv_prompt + head * pv_head
        scale = tl.cast(scale, tl.float32)
        scale2 = scale * LOG2E
        q = load_rows(q_ptr, rows, q_row, inside, D, BLOCK_D)
        dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for begin in range(0, n_prefix, BLOCK_P):
            keys = begin + tl.arange(0, BLOCK_P).to(tl.int64)
            there = keys < n_prefix
            k = load_rows(prefix_k_ptr, keys, pk_row, there, D, BLOCK_D)
            v = load_rows(prefix_v_ptr, keys, pv_row, there, D, BLOCK_D)
            dq = _query_gradient(q, dout, k, v, there[None, :], scale2, lse, delta, dq, PRECISION)
        end = tl.max(last) + 1
        for begin in range(tl.min(first), end, BLOCK_N):
            keys = begin + tl.arange(0, BLOCK_N)
            there = keys < end
            k = load_rows(k_ptr, keys, k_row, there, D, BLOCK_D)
            v = load_rows(v_ptr, keys, v_row, there, D, BLOCK_D)
            seen = (keys[None, :] >= first[:, None]) & (keys[None, :] <= last[:, None])
            dq = _query_gradient(q, dout, k, v, seen, scale2, lse, delta, dq, PRECISION)
        store_rows(dq_ptr + offset, rows, heads * D, inside, dq * scale, D, BLOCK_D)
