"""Triton kernels of the gradients of keys and values, over tiles of keys."""

import triton
import triton.language as tl

from .tiles import LOG2E, load_rows, place, product, store_rows


@triton.jit
def _key_gradients(k, v, q, dout, seen, scale, lse, delta, dk, dv, PRECISION: tl.constexpr):
    """Add the contribution of one block of queries to ``dk / scale`` and ``dv``."""
    scores = product(k, tl.trans(q), PRECISION) * scale
    weights = tl.where(seen, tl.exp2(scores - lse[None, :]), 0.0)
    dv += product(weights.to(q.dtype), dout, PRECISION)
    dweights = product(v, tl.trans(dout), PRECISION)
    ds = weights * (dweights - delta[None, :])
    dk += product(ds.to(q.dtype), q, PRECISION)
    return dk, dv


@triton.jit
def _prefix_gradients(k, v, q, dout, seen, scale, lse, delta, dk, dv, PRECISION: tl.constexpr):
    """Like `_key_gradients`, with ``dk / scale`` and ``dv`` transposed, ``[d, keys]``.

    A prefix has few keys: here a product's rows are queries or the head's width, not keys.
    """
    scores = product(q, tl.trans(k), PRECISION) * scale
    weights = tl.where(seen, tl.exp2(scores - lse[:, None]), 0.0)
    dv += product(tl.trans(dout), weights.to(q.dtype), PRECISION)
    dweights = product(dout, tl.trans(v), PRECISION)
    ds = weights * (dweights - delta[:, None])
    dk += product(tl.trans(q), ds.to(q.dtype), PRECISION)
    return dk, dv


@triton.jit
def _suffix_keys_backward_kernel(
    dout_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    cu_ptr,
    classes_ptr,
    lse_ptr,
    delta_ptr,
    dk_ptr,
    dv_ptr,
    scale,
    tiles,
    heads,
    n_queries,
    n_tokens,
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
    LAST_ONLY: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute ``dk`` and ``dv`` of a tile of suffix tokens from the queries that attend to them."""
    tile, head, prompt = place(tiles, heads)
    keys = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    there = keys < n_tokens
    # queries in [first, last) see a key; rows beyond the last key repeat it and are not stored
    token = tl.minimum(keys, n_tokens - 1)
    own = tl.load(classes_ptr + token).to(tl.int64)
    if LAST_ONLY:
        first, last = own, own + 1
    else:
        first, last = token, tl.load(cu_ptr + own + 1).to(tl.int64)
    dout_ptr += prompt * do_prompt + head * do_head
    q_ptr += prompt * q_prompt + head * q_head
    at = prompt * n_queries * heads + head
    scale = tl.cast(scale, tl.float32)
    k = load_rows(k_ptr + prompt * k_prompt + head * k_head, keys, k_row, there, D, BLOCK_D)
    v = load_rows(v_ptr + prompt * v_prompt + head * v_head, keys, v_row, there, D, BLOCK_D)
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    end = tl.max(last)
    for begin in range(tl.min(first), end, BLOCK_M):
        rows = begin + tl.arange(0, BLOCK_M)
        inside = rows < end
        q = load_rows(q_ptr, rows, q_row, inside, D, BLOCK_D)
        dout = load_rows(dout_ptr, rows, do_row, inside, D, BLOCK_D)
        lse = tl.load(lse_ptr + at + rows * heads, mask=inside, other=0.0) * LOG2E
        delta = tl.load(delta_ptr + at + rows * heads, mask=inside, other=0.0)
        seen = (rows[None, :] >= first[:, None]) & (rows[None, :] < last[:, None])
        dk, dv = _key_gradients(k, v, q, dout, seen, scale * LOG2E, lse, delta, dk, dv, PRECISION)
    offset = (prompt * n_tokens * heads + head) * D
    store_rows(dk_ptr + offset, keys, heads * D, there, dk * scale, D, BLOCK_D)
    store_rows(dv_ptr + offset, keys, heads * D, there, dv, D, BLOCK_D)


@triton.jit
def _prefix_keys_backward_kernel(
    dout_ptr,
    q_ptr,
    prefix_k_ptr,
    prefix_v_ptr,
    lse_ptr,
    delta_ptr,
    parts_ptr,
    scale,
    tiles,
    heads,
    n_prompts,
    n_queries,
    n_prefix,
    chunk,
    do_prompt,
    do_row,
    do_head,
    q_prompt,
    q_row,
    q_head,
    pk_prompt,
    pk_row,
    pk_head,
    pv_prompt,
    pv_row,
    pv_head,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_P: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute a chunk of queries' part of the prefix gradients, ``[chunks, 2, K, P, H, d]``.

    Every query attends to the whole prefix. One program writes each part once, so the sum over the
    parts has a fixed order.
    """
    tile, head, prompt = place(tiles, heads)
    blocks = tl.cdiv(n_prefix, BLOCK_P)
    part = tile // blocks
    keys = (tile % blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    there = keys < n_prefix
    prefix_k_ptr += prompt * pk_prompt + head * pk_head
    prefix_v_ptr += prompt * pv_prompt + head * pv_head
    dout_ptr += prompt * do_prompt + head * do_head
    q_ptr += prompt * q_prompt + head * q_head
    at = prompt * n_queries * heads + head
    scale = tl.cast(scale, tl.float32)
    k = load_rows(prefix_k_ptr, keys, pk_row, there, D, BLOCK_D)
    v = load_rows(prefix_v_ptr, keys, pv_row, there, D, BLOCK_D)
    ROWS: tl.constexpr = BLOCK_D if TRANSPOSED else BLOCK_P
    COLUMNS: tl.constexpr = BLOCK_P if TRANSPOSED else BLOCK_D
    dk = tl.zeros([ROWS, COLUMNS], tl.float32)
    dv = tl.zeros([ROWS, COLUMNS], tl.float32)
    end = tl.minimum((part + 1) * chunk, n_queries)
    for begin in range(part * chunk, end, BLOCK_M):
        rows = begin + tl.arange(0, BLOCK_M)
        inside = rows < end
        q = load_rows(q_ptr, rows, q_row, inside, D, BLOCK_D)
        dout = load_rows(dout_ptr, rows, do_row, inside, D, BLOCK_D)
        lse = tl.load(lse_ptr + at + rows * heads, mask=inside, other=0.0) * LOG2E
        delta = tl.load(delta_ptr + at + rows * heads, mask=inside, other=0.0)
        if TRANSPOSED:
            dk, dv = _prefix_gradients(
                k, v, q, dout, inside[:, None], scale * LOG2E, lse, delta, dk, dv, PRECISION
            )
        else:
            dk, dv = _key_gradients(
                k, v, q, dout, inside[None, :], scale * LOG2E, lse, delta, dk, dv, PRECISION
            )
    plane = tl.cast(n_prefix, tl.int64) * heads * D
    parts_ptr += (part * 2 * n_prompts + prompt) * plane + head * D
    if TRANSPOSED:
        dk, dv = tl.trans(dk), tl.trans(dv)
    store_rows(parts_ptr, keys, heads * D, there, dk * scale, D, BLOCK_D)
    store_rows(parts_ptr + n_prompts * plane, keys, heads * D, there, dv, D, BLOCK_D)


@triton.jit
def _sum_prefix_parts_kernel(
    parts_ptr,
    dk_ptr,
    dv_ptr,
    n,
    chunks,
    BLOCK: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
):
    """Sum parts ``[chunks, 2, n]`` over the chunks in a fixed order."""
    entries = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = entries < n
    dk = tl.zeros([BLOCK_CHUNKS, BLOCK], tl.float32)
    dv = tl.zeros([BLOCK_CHUNKS, BLOCK], tl.float32)
    for first in range(0, chunks, BLOCK_CHUNKS):
        part = first + tl.arange(0, BLOCK_CHUNKS).to(tl.int64)[:, None]
        mask = (part < chunks) & inside[None, :]
        at = parts_ptr + part * 2 * n + entries[None, :]
        dk += tl.load(at, mask=mask, other=0.0)
        dv += tl.load(at + n, mask=mask, other=0.0)
    tl.store(dk_ptr + entries, tl.sum(dk, 0).to(dk_ptr.dtype.element_ty), mask=inside)
    tl.store(dv_ptr + entries, tl.sum(dv, 0).to(dv_ptr.dtype.element_ty), mask=inside)
