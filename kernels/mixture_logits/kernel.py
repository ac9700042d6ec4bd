"""Triton kernels of the mixture: products on tensor cores, mixture norms from Gram matrices.

Tiles are ``[BLOCK_B images, BLOCK_C classes]`` with a loop over prompts: no intermediate has both
classes and width, or images, prompts and classes. Weights and Gram matrices are multiplied in full
float32, since the norm of a mixture of nearly canceling prompts depends on their last digits.

``KP`` is the number of prompts padded for `tl.dot`, ``SLICE`` the number processed at once. Symbols
are those of `eager`. `gradient_kernel` computes the gradients from the marginals.
"""

import triton
import triton.language as tl

from .tiles import _add_product, _gram_rows, _inverse_root, _operand, _tile


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
def _mixture_logits_kernel(
    image_ptr,
    text_ptr,
    router_ptr,
    scale_ptr,
    gram_ptr,
    inv_norm_ptr,
    logits_ptr,
    weights_ptr,
    cosine_ptr,
    inverse_ptr,
    temperature,
    B,
    C,
    K,
    D,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    KP: tl.constexpr,
    SLICE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    _, _, tile_c, b, c = _tile(B, C, BLOCK_B, BLOCK_C)
    temperature = tl.cast(temperature, tl.float32)
    prompt = tl.arange(0, KP)
    at = b[:, None] * K + prompt[None, :]
    inside = (b < B)[:, None] & (prompt < K)[None, :]
    x = tl.load(router_ptr + at, mask=inside, other=0.0).to(tl.float32)
    peak = tl.max(tl.where((prompt < K)[None, :], x, float("-inf")), 1)
    w = _weights(router_ptr, at, inside, peak[:, None], temperature)
    total = tl.sum(w, 1)
    total = tl.where(b < B, total, 1.0)
    if tile_c == 0:
        tl.store(weights_ptr + at, w / total[:, None], mask=inside)
    squared = tl.zeros([BLOCK_B, BLOCK_C], tl.float32)
    if KP == SLICE:
        w /= total[:, None]
        for k in tl.range(0, K, num_stages=2):
            w_k = tl.sum(tl.where(prompt[None, :] == k, w, 0.0), 1)
            rows = _gram_rows(gram_ptr, k, prompt, c, C, K)
            squared = tl.dot(w * w_k[:, None], rows, squared, input_precision="ieee")
    else:
        # a few prompts at a time: all weights would not fit into registers
        for first in range(0, K, SLICE):
            j = first + tl.arange(0, SLICE)
            mask = (b < B)[:, None] & (j < K)[None, :]
            at_j = b[:, None] * K + j[None, :]
            w_j = _weights(router_ptr, at_j, mask, peak[:, None], temperature) / total[:, None]
            for k in tl.range(0, K, num_stages=2):
                w_k = _weights(router_ptr, b * K + k, b < B, peak, temperature) / total
                rows = _gram_rows(gram_ptr, k, j, c, C, K)
                squared = tl.dot(w_j * w_k[:, None], rows, squared, input_precision="ieee")
    dots = tl.zeros([BLOCK_B, BLOCK_C], tl.float32)
    acc = tl.zeros([BLOCK_B, BLOCK_C], tl.float32)
    steps = tl.cdiv(D, BLOCK_D)
    # one loop over prompts and widths, so that loads are pipelined across prompts
    for i in range(K * steps):
        k = i // steps
        step = i - k * steps
        d = step * BLOCK_D + tl.arange(0, BLOCK_D)
        acc = _add_product(acc, image_ptr, text_ptr, b, c, k, d, B, C, D, PRECISION, WIDEN)
        if step == steps - 1:
            w_k = _weights(router_ptr, b * K + k, b < B, peak, temperature) / total
            inv = tl.load(inv_norm_ptr + k * C + c, mask=c < C, other=0.0)
            dots += acc * w_k[:, None] * inv[None, :]
            acc = tl.zeros([BLOCK_B, BLOCK_C], tl.float32)
    inverse = _inverse_root(squared)
    cosine = dots * inverse
    to = b[:, None] * C + c[None, :]
    mask = (b < B)[:, None] & (c < C)[None, :]
    tl.store(logits_ptr + to, cosine * tl.load(scale_ptr), mask=mask)
    tl.store(cosine_ptr + to, cosine, mask=mask)
    tl.store(inverse_ptr + to, inverse, mask=mask)


@triton.jit
def _marginals_kernel(
    dlogits_ptr,
    image_ptr,
    text_ptr,
    scale_ptr,
    gram_ptr,
    inv_norm_ptr,
    weights_ptr,
    cosine_ptr,
    inverse_ptr,
    alpha_ptr,
    twice_beta_ptr,
    dw_ptr,
    along_ptr,
    dscale_ptr,
    B,
    C,
    K,
    D,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    SLICE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Compute ``alpha``, ``2 beta``, and sums of ``M_bkc = alpha P + 2 beta V`` over a tile.

    ``dw`` sums M over classes, ``along`` sums ``w_bk M`` over images, which is ``dt^_kc . t^_kc``.
    Unwanted outputs have no pointer.
    """
    program, tile_b, tile_c, b, c = _tile(B, C, BLOCK_B, BLOCK_C)
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
        tl.store(dscale_ptr + program, tl.sum(g * cosine))
    if dw_ptr is not None or along_ptr is not None:
        acc = tl.zeros([BLOCK_B, BLOCK_C], tl.float32)
        steps = tl.cdiv(D, BLOCK_D)
        # one loop over prompts and widths, so that loads are pipelined across prompts
        for i in range(K * steps):
            k = i // steps
            step = i - k * steps
            d = step * BLOCK_D + tl.arange(0, BLOCK_D)
            acc = _add_product(acc, image_ptr, text_ptr, b, c, k, d, B, C, D, PRECISION, WIDEN)
            if step == steps - 1:
                v = tl.zeros([BLOCK_B, BLOCK_C], tl.float32)
                # a few prompts at a time
                for first in tl.range(0, K, SLICE, num_stages=1):
                    j = first + tl.arange(0, SLICE)
                    inside = (b < B)[:, None] & (j < K)[None, :]
                    at_j = b[:, None] * K + j[None, :]
                    w = tl.load(weights_ptr + at_j, mask=inside, other=0.0)
                    rows = _gram_rows(gram_ptr, k, j, c, C, K)
                    v = tl.dot(w, rows, v, input_precision="ieee")
                inv = tl.load(inv_norm_ptr + k * C + c, mask=c < C, other=0.0)
                m = alpha * acc * inv[None, :] + twice_beta * v
                if dw_ptr is not None:
                    tl.store(dw_ptr + (tile_c * B + b) * K + k, tl.sum(m, 1), mask=b < B)
                if along_ptr is not None:
                    w_k = tl.load(weights_ptr + b * K + k, mask=b < B, other=0.0)
                    along = tl.sum(m * w_k[:, None], 0)
                    tl.store(along_ptr + (tile_b * K + k) * C + c, along, mask=c < C)
                acc = tl.zeros([BLOCK_B, BLOCK_C], tl.float32)
