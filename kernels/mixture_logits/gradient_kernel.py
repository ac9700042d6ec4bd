"""Triton kernels of the mixture's gradients: products on tensor cores, sums in a fixed order.

Symbols are those of `eager`, tiles those of `kernel`.
"""

import triton
import triton.language as tl

from .tiles import _add_folded


@triton.jit
def _image_gradient_kernel(
    text_ptr,
    inv_norm_ptr,
    weights_ptr,
    alpha_ptr,
    parts_ptr,
    B,
    C,
    K,
    D,
    n_steps,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Compute ``sum_kc w_bk alpha_bc t^_kc`` over ``n_steps`` blocks of classes.

    One product ``[B, classes * K] x [classes * K, D]``, with the weights in the first operand.
    """
    program = tl.program_id(0).to(tl.int64)
    tiles_b, tiles_d = tl.cdiv(B, BLOCK_B), tl.cdiv(D, BLOCK_D)
    part = program // (tiles_b * tiles_d)
    rest = program - part * (tiles_b * tiles_d)
    b = (rest % tiles_b) * BLOCK_B + tl.arange(0, BLOCK_B)
    d = (rest // tiles_b) * BLOCK_D + tl.arange(0, BLOCK_D)
    acc = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
    for step in range(n_steps):
        c = (part * n_steps + step) * BLOCK_C + tl.arange(0, BLOCK_C)
        a_mask = (b < B)[:, None] & (c < C)[None, :]
        t_mask = (c < C)[:, None] & (d < D)[None, :]
        alpha = tl.load(alpha_ptr + b[:, None] * C + c[None, :], mask=a_mask, other=0.0)
        for k in range(K):
            w_k = tl.load(weights_ptr + b * K + k, mask=b < B, other=0.0)
            row = k * C + c
            inv = tl.load(inv_norm_ptr + row, mask=c < C, other=0.0)
            t = tl.load(text_ptr + row[:, None] * D + d[None, :], mask=t_mask, other=0.0)
            # apply inv to the weight, not to t: its values are exact in the product's dtype
            share = alpha * w_k[:, None] * inv[None, :]
            acc = _add_folded(acc, share, t, PRECISION, WIDEN)
    to = parts_ptr + (part * B + b)[:, None] * D + d[None, :]
    tl.store(to, acc, mask=(b < B)[:, None] & (d < D)[None, :])


@triton.jit
def _gamma_kernel(
    weights_ptr,
    twice_beta_ptr,
    gamma_ptr,
    B,
    C,
    K,
    KP: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute ``Gamma_c[k, l] = sum_b 2 beta_bc w_bk w_bl`` of one ``k`` and a block of classes."""
    program = tl.program_id(0).to(tl.int64)
    tiles_c = tl.cdiv(C, BLOCK_C)
    k = program // tiles_c
    c = (program - k * tiles_c) * BLOCK_C + tl.arange(0, BLOCK_C)
    j = tl.arange(0, KP)
    acc = tl.zeros([KP, BLOCK_C], tl.float32)
    for first in range(0, B, BLOCK_B):
        b = (first + tl.arange(0, BLOCK_B)).to(tl.int64)
        w_mask = (j < K)[:, None] & (b < B)[None, :]
        beta_mask = (b < B)[:, None] & (c < C)[None, :]
        w = tl.load(weights_ptr + b[None, :] * K + j[:, None], mask=w_mask, other=0.0)
        w_k = tl.load(weights_ptr + b * K + k, mask=b < B, other=0.0)
        at = b[:, None] * C + c[None, :]
        twice_beta = tl.load(twice_beta_ptr + at, mask=beta_mask, other=0.0)
        acc = tl.dot(w * w_k[None, :], twice_beta, acc, input_precision="ieee")
    to = (k * K + j)[:, None] * C + c[None, :]
    tl.store(gamma_ptr + to, acc, mask=(j < K)[:, None] & (c < C)[None, :])


@triton.jit
def _text_gradient_kernel(
    image_ptr,
    text_ptr,
    gram_ptr,
    inv_norm_ptr,
    weights_ptr,
    alpha_ptr,
    gamma_ptr,
    along_ptr,
    dtext_ptr,
    n_along,
    B,
    C,
    K,
    D,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    CLASSES: tl.constexpr,
    ROWS: tl.constexpr,
    SLICE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Compute a block of the text gradient's width for ``ROWS`` pairs of a prompt and a class.

    ``Gamma`` is block-diagonal in the ``CLASSES`` classes: multiply all rows by all, masked.
    ``along`` has the marginals' sums, without the part of the Gram matrices.
    """
    program = tl.program_id(0).to(tl.int64)
    tiles_d = tl.cdiv(D, BLOCK_D)
    tile_c = program // tiles_d
    d = (program - tile_c * tiles_d) * BLOCK_D + tl.arange(0, BLOCK_D)
    pair = tl.arange(0, ROWS)
    k, local = pair // CLASSES, pair % CLASSES
    c = tile_c * CLASSES + local
    real = (k < K) & (c < C)
    KP: tl.constexpr = ROWS // CLASSES
    prompt = tl.arange(0, KP)[:, None, None]
    own = (tile_c * CLASSES + tl.arange(0, CLASSES))[None, :, None]
    acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for first in range(0, B, BLOCK_B):
        b = (first + tl.arange(0, BLOCK_B)).to(tl.int64)
        f_mask = (b < B)[:, None] & (d < D)[None, :]
        f = tl.load(image_ptr + b[:, None] * D + d[None, :], mask=f_mask, other=0.0)
        # load each w and alpha once, not per class or per prompt
        flat = b[None, None, :]
        w = tl.load(weights_ptr + flat * K + prompt, mask=(prompt < K) & (flat < B), other=0.0)
        alpha = tl.load(alpha_ptr + flat * C + own, mask=(own < C) & (flat < B), other=0.0)
        acc = _add_folded(acc, tl.reshape(w * alpha, [ROWS, BLOCK_B]), f, PRECISION, WIDEN)
    along = tl.zeros([ROWS], tl.float32)
    # a few columns of Gamma at a time: all columns would not fit into registers
    for start in range(0, ROWS, SLICE):
        column = start + tl.arange(0, SLICE)
        j, local_j = column // CLASSES, column % CLASSES
        c_j = tile_c * CLASSES + local_j
        real_j = (j < K) & (c_j < C)
        row_j = j * C + c_j
        prompts = (k[:, None] * K + j[None, :]).to(tl.int64)
        mask = real[:, None] & real_j[None, :] & (local[:, None] == local_j[None, :])
        gamma = tl.load(gamma_ptr + prompts * C + c[:, None], mask=mask, other=0.0)
        if along_ptr is not None:
            gram = tl.load(gram_ptr + prompts * C + c[:, None], mask=mask, other=0.0)
            along += tl.sum(gamma * gram, 1)
        # apply inv to Gamma, not to t: its values are exact in the product's dtype
        inv_j = tl.load(inv_norm_ptr + row_j, mask=real_j, other=0.0)
        mask_j = real_j[:, None] & (d < D)[None, :]
        t_j = tl.load(text_ptr + row_j[:, None] * D + d[None, :], mask=mask_j, other=0.0)
        acc = _add_folded(acc, gamma * inv_j[None, :], t_j, PRECISION, WIDEN)
    row = k * C + c
    mask = real[:, None] & (d < D)[None, :]
    at = row[:, None] * D + d[None, :]
    if along_ptr is not None:
        for tile_b in range(n_along):
            part = tl.cast(tile_b, tl.int64) * K * C
            along += tl.load(along_ptr + part + row, mask=real, other=0.0)
        inv = tl.load(inv_norm_ptr + row, mask=real, other=0.0)
        t = tl.load(text_ptr + at, mask=mask, other=0.0).to(tl.float32)
        acc = (acc - t * (along * inv)[:, None]) * inv[:, None]
    tl.store(dtext_ptr + at, acc.to(dtext_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _add_up(parts_ptr, sum_ptr, n, here, BLOCK: tl.constexpr):
    """Sum ``n`` numbers, in the program where ``here`` is true."""
    if here:
        total = tl.zeros([BLOCK], tl.float32)
        for first in range(0, n, BLOCK):
            part = first + tl.arange(0, BLOCK)
            total += tl.load(parts_ptr + part, mask=part < n, other=0.0)
        tl.store(sum_ptr, tl.sum(total))


@triton.jit
def _router_gradient(
    dw_ptr,
    dweights_ptr,
    weights_ptr,
    drouter_ptr,
    b,
    here,
    temperature,
    n_dw,
    B,
    K,
    KP: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
):
    """Compute the softmax backward of one image, in the program where ``here`` is true."""
    if here:
        k = tl.arange(0, KP)
        sums = tl.zeros([BLOCK_PARTS, KP], tl.float32)
        for first in range(0, n_dw, BLOCK_PARTS):
            part = first + tl.arange(0, BLOCK_PARTS)
            mask = (part < n_dw)[:, None] & (k < K)[None, :]
            at = (part[:, None] * B + b) * K + k[None, :]
            sums += tl.load(dw_ptr + at, mask=mask, other=0.0)
        dw = tl.sum(sums, 0)
        w = tl.load(weights_ptr + b * K + k, mask=k < K, other=0.0)
        if dweights_ptr is not None:
            dw += tl.load(dweights_ptr + b * K + k, mask=k < K, other=0.0)
        grad = w * (dw - tl.sum(w * dw)) / tl.cast(temperature, tl.float32)
        tl.store(drouter_ptr + b * K + k, grad.to(drouter_ptr.dtype.element_ty), mask=k < K)


@triton.jit
def _image_router_scale_gradient_kernel(
    parts_ptr,
    dw_ptr,
    dweights_ptr,
    weights_ptr,
    dscale_parts_ptr,
    dimage_ptr,
    drouter_ptr,
    dscale_ptr,
    temperature,
    n_parts,
    n_dw,
    n_dscale,
    B,
    K,
    D,
    KP: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
):
    """Sum the parts of ``dimage`` for one image and a block of the width.

    The first block also computes the image's softmax backward, the first program sums ``dscale``.
    """
    program = tl.program_id(0).to(tl.int64)
    b = program % B
    block = program // B
    if dimage_ptr is not None:
        d = block * BLOCK_D + tl.arange(0, BLOCK_D)
        sums = tl.zeros([BLOCK_PARTS, BLOCK_D], tl.float32)
        for first in range(0, n_parts, BLOCK_PARTS):
            part = first + tl.arange(0, BLOCK_PARTS)
            mask = (part < n_parts)[:, None] & (d < D)[None, :]
            at = (part[:, None] * B + b) * D + d[None, :]
            sums += tl.load(parts_ptr + at, mask=mask, other=0.0)
        total = tl.sum(sums, 0).to(dimage_ptr.dtype.element_ty)
        tl.store(dimage_ptr + b * D + d, total, mask=d < D)
    if drouter_ptr is not None:
        _router_gradient(
            dw_ptr,
            dweights_ptr,
            weights_ptr,
            drouter_ptr,
            b,
            block == 0,
            temperature,
            n_dw,
            B,
            K,
            KP,
            BLOCK_PARTS,
        )
    if dscale_ptr is not None:
        _add_up(dscale_parts_ptr, dscale_ptr, n_dscale, program == 0, BLOCK_D)
