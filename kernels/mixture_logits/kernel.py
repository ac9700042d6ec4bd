"""Triton kernels of the mixture: products on tensor cores, mixture norms from Gram matrices.

Products are ``[BLOCK_C classes, BLOCK_B images]``, so that even a small batch fills the 64 rows of
a tensor core's product, with a loop over prompts: no intermediate has both classes and width, or
images, prompts and classes. The weight and the norm of a prompt are applied to its sums in float32,
not to its features, which stay exact in bfloat16. If there are few tiles, the prompts are split
into parts, which `_mixture_logits_kernel` adds up in a fixed order. Weights and Gram matrices are
multiplied in full float32, since the norm of a mixture of nearly canceling prompts depends on their
last digits.

``KP`` is the number of prompts padded for `tl.dot`, ``SLICE`` the number processed at once. Symbols
are those of `eager`. `gradient_kernel` computes the gradients from the marginals.
"""

import triton
import triton.language as tl

from .tiles import _gram_rows, _inverse_root, _operand, _products, _tile


@triton.jit
def _gram_kernel(
    text_ptr,
    gram_ptr,
    inv_norm_ptr,
    C,
    K,
    D,
    NORMALIZED: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    KP: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Compute the Gram matrix of one class's prompts."""
    c = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, KP)
    row = text_ptr + (k * C + c) * D
    acc = tl.zeros([KP, KP], tl.float32)
    for first in range(0, D, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        mask = (k < K)[:, None] & (d < D)[None, :]
        t = _operand(tl.load(row[:, None] + d[None, :], mask=mask, other=0.0), WIDEN)
        acc = tl.dot(t, tl.trans(t), acc, input_precision=PRECISION)
    if NORMALIZED:
        inv = _inverse_root(tl.sum(tl.where(k[:, None] == k[None, :], acc, 0.0), 1))
        acc = acc * inv[:, None] * inv[None, :]
    else:
        inv = tl.full([KP], 1.0, tl.float32)
    pair = (k[:, None] * K + k[None, :]).to(tl.int64)
    tl.store(gram_ptr + pair * C + c, acc, mask=(k < K)[:, None] & (k < K)[None, :])
    tl.store(inv_norm_ptr + k * C + c, inv, mask=k < K)


@triton.jit
def _weights(router_ptr, at, mask, peak, temperature):
    """Return the softmax numerators, 0 outside ``mask``: loading -inf there would give NaN."""
    x = tl.load(router_ptr + at, mask=mask, other=0.0).to(tl.float32)
    return tl.where(mask, tl.exp((x - peak) / temperature), 0.0)


@triton.jit
def _products_kernel(
    image_ptr,
    text_ptr,
    router_ptr,
    inv_norm_ptr,
    weights_ptr,
    parts_ptr,
    temperature,
    B,
    C,
    K,
    D,
    n_prompts,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    KP: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Compute ``sum_k w_bk f_b . t^_kc`` over ``n_prompts`` prompts, and the weights."""
    part, _, tile_c, b, c = _tile(B, C, BLOCK_B, BLOCK_C)
    temperature = tl.cast(temperature, tl.float32)
    prompt = tl.arange(0, KP)
    at = b[:, None] * K + prompt[None, :]
    inside = (b < B)[:, None] & (prompt < K)[None, :]
    x = tl.load(router_ptr + at, mask=inside, other=0.0).to(tl.float32)
    peak = tl.max(tl.where((prompt < K)[None, :], x, float("-inf")), 1)
    w = _weights(router_ptr, at, inside, peak[:, None], temperature)
    total = tl.sum(w, 1)
    total = tl.where(b < B, total, 1.0)
    if (tile_c == 0) & (part == 0):
        tl.store(weights_ptr + at, w / total[:, None], mask=inside)
    dots = tl.zeros([BLOCK_C, BLOCK_B], tl.float32)
    for k in range(part * n_prompts, tl.minimum((part + 1) * n_prompts, K)):
        found = _products(
            image_ptr, text_ptr, b, c, k, B, C, D, PRECISION, WIDEN, BLOCK_B, BLOCK_C, BLOCK_D
        )
        w_k = _weights(router_ptr, b * K + k, b < B, peak, temperature) / total
        inv = tl.load(inv_norm_ptr + k * C + c, mask=c < C, other=0.0)
        dots += found * w_k[None, :] * inv[:, None]
    to = (part * B + b)[None, :] * C + c[:, None]
    tl.store(parts_ptr + to, dots, mask=(b < B)[None, :] & (c < C)[:, None])


@triton.jit
def _mixture_logits_kernel(
    parts_ptr,
    weights_ptr,
    scale_ptr,
    gram_ptr,
    logits_ptr,
    cosine_ptr,
    inverse_ptr,
    n_parts,
    B,
    C,
    K,
    SLICE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Add up the parts of the products, and divide by the norms of the mixtures."""
    _, _, _, b, c = _tile(B, C, BLOCK_B, BLOCK_C)
    squared = tl.zeros([BLOCK_B, BLOCK_C], tl.float32)
    # a few prompts at a time: all weights would not fit into registers
    for first in range(0, K, SLICE):
        j = first + tl.arange(0, SLICE)
        mask = (b < B)[:, None] & (j < K)[None, :]
        w = tl.load(weights_ptr + b[:, None] * K + j[None, :], mask=mask, other=0.0)
        for k in tl.range(0, K, num_stages=2):
            w_k = tl.load(weights_ptr + b * K + k, mask=b < B, other=0.0)
            rows = _gram_rows(gram_ptr, k, j, c, C, K)
            squared = tl.dot(w * w_k[:, None], rows, squared, input_precision="ieee")
    to = b[:, None] * C + c[None, :]
    mask = (b < B)[:, None] & (c < C)[None, :]
    dots = tl.zeros([BLOCK_B, BLOCK_C], tl.float32)
    for part in range(n_parts):
        dots += tl.load(parts_ptr + tl.cast(part, tl.int64) * B * C + to, mask=mask, other=0.0)
    inverse = _inverse_root(squared)
    cosine = dots * inverse
    tl.store(logits_ptr + to, cosine * tl.load(scale_ptr), mask=mask)
    tl.store(cosine_ptr + to, cosine, mask=mask)
    tl.store(inverse_ptr + to, inverse, mask=mask)


@triton.jit
def _factors_kernel(
    dlogits_ptr,
    scale_ptr,
    gram_ptr,
    weights_ptr,
    cosine_ptr,
    inverse_ptr,
    alpha_ptr,
    twice_beta_ptr,
    dw_ptr,
    dscale_ptr,
    B,
    C,
    K,
    SLICE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute ``alpha``, ``2 beta``, and sums over a tile's classes of the norms' gradients.

    ``dw`` sums ``2 beta_bc G_c[k, l] w_bl`` over classes and prompts ``l``, ``dscale`` sums
    ``g cos``. Unwanted outputs have no pointer.
    """
    _, tile_b, tile_c, b, c = _tile(B, C, BLOCK_B, BLOCK_C)
    at = b[:, None] * C + c[None, :]
    mask = (b < B)[:, None] & (c < C)[None, :]
    g = tl.load(dlogits_ptr + at, mask=mask, other=0.0)
    cosine = tl.load(cosine_ptr + at, mask=mask, other=0.0)
    inverse = tl.load(inverse_ptr + at, mask=mask, other=0.0)
    alpha = g * inverse * tl.load(scale_ptr)
    twice_beta = -alpha * cosine * inverse
    if alpha_ptr is not None:
        tl.store(alpha_ptr + at, alpha, mask=mask)
    if twice_beta_ptr is not None:
        tl.store(twice_beta_ptr + at, twice_beta, mask=mask)
    if dscale_ptr is not None:
        tl.store(dscale_ptr + tile_c * tl.cdiv(B, BLOCK_B) + tile_b, tl.sum(g * cosine))
    if dw_ptr is not None:
        for k in range(K):
            v = tl.zeros([BLOCK_B, BLOCK_C], tl.float32)
            # a few prompts at a time: all weights would not fit into registers
            for first in range(0, K, SLICE):
                j = first + tl.arange(0, SLICE)
                inside = (b < B)[:, None] & (j < K)[None, :]
                w = tl.load(weights_ptr + b[:, None] * K + j[None, :], mask=inside, other=0.0)
                rows = _gram_rows(gram_ptr, k, j, c, C, K)
                v = tl.dot(w, rows, v, input_precision="ieee")
            tl.store(dw_ptr + (tile_c * B + b) * K + k, tl.sum(twice_beta * v, 1), mask=b < B)


@triton.jit
def _marginals_kernel(
    image_ptr,
    text_ptr,
    inv_norm_ptr,
    weights_ptr,
    alpha_ptr,
    dw_ptr,
    along_ptr,
    B,
    C,
    K,
    D,
    n_prompts,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Compute sums of ``alpha_bc f_b . t^_kc`` over a tile, for ``n_prompts`` prompts.

    ``dw`` sums over classes, ``along`` sums over images, with the weights. Unwanted outputs have no
    pointer.
    """
    part, tile_b, tile_c, b, c = _tile(B, C, BLOCK_B, BLOCK_C)
    alpha_ptr += tile_b * BLOCK_B * C + tile_c * BLOCK_C
    # in 32 bits inside of a tile: offsets of 64 bits would fill the registers
    at = tl.arange(0, BLOCK_B)[None, :] * C + tl.arange(0, BLOCK_C)[:, None]
    mask = (b < B)[None, :] & (c < C)[:, None]
    for k in range(part * n_prompts, tl.minimum((part + 1) * n_prompts, K)):
        found = _products(
            image_ptr, text_ptr, b, c, k, B, C, D, PRECISION, WIDEN, BLOCK_B, BLOCK_C, BLOCK_D
        )
        inv = tl.load(inv_norm_ptr + k * C + c, mask=c < C, other=0.0)
        m = tl.load(alpha_ptr + at, mask=mask, other=0.0) * found
        if along_ptr is not None:
            w_k = tl.load(weights_ptr + b * K + k, mask=b < B, other=0.0)
            along = tl.sum(m * w_k[None, :], 1) * inv
            tl.store(along_ptr + (tile_b * K + k) * C + c, along, mask=c < C)
        if dw_ptr is not None:
            dw = tl.sum(m * inv[:, None], 0)
            tl.store(dw_ptr + (tile_c * B + b) * K + k, dw, mask=b < B)
