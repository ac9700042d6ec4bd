"""The same on a GPU: the products on tensor cores, the mixture's length from the Gram matrices.

Tiles are ``[BLOCK_B images, BLOCK_C classes]``, prompts a loop: no tensor has both classes and
width, or images, prompts and classes. Weights and Gram matrices are multiplied in full float32:
the length of a mixture of prompts that almost cancel lies in their last digits.

``KP`` is the number of prompts padded for `tl.dot`, ``SLICE`` how many are taken at once.
Symbols are those of `eager`.
"""

import triton
import triton.language as tl


@triton.jit
def _inverse_root(squared):
    """0 for a length of 0, and for what rounding put below it."""
    positive = squared > 0
    return tl.where(positive, tl.rsqrt(tl.where(positive, squared, 1.0)), 0.0)


@triton.jit
def _operand(x, WIDEN: tl.constexpr):
    """In float32 products are the same; the interpreter would multiply the bits of bfloat16."""
    if WIDEN:
        return x.to(tl.float32)
    else:
        return x


@triton.jit
def _gram_kernel(
    text_ptr,
    gram_ptr,
    inv_norm_ptr,
    C,
    K,
    D,
    NORMALISED: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    KP: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One class: the products of its prompts."""
    c = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, KP)
    row = text_ptr + (k * C + c) * D
    acc = tl.zeros([KP, KP], tl.float32)
    for first in range(0, D, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        mask = (k < K)[:, None] & (d < D)[None, :]
        t = _operand(tl.load(row[:, None] + d[None, :], mask=mask, other=0.0), WIDEN)
        acc = tl.dot(t, tl.trans(t), acc, input_precision=PRECISION)
    if NORMALISED:
        inv = _inverse_root(tl.sum(tl.where(k[:, None] == k[None, :], acc, 0.0), 1))
        acc = acc * inv[:, None] * inv[None, :]
    else:
        inv = tl.full([KP], 1.0, tl.float32)
    pair = k[:, None] * K + k[None, :]
    tl.store(gram_ptr + pair * C + c, acc, mask=(k < K)[:, None] & (k < K)[None, :])
    tl.store(inv_norm_ptr + k * C + c, inv, mask=k < K)


@triton.jit
def _tile(B, C, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr):
    """Images and classes of this program; those that share classes are neighbours."""
    program = tl.program_id(0).to(tl.int64)
    tiles_b = tl.cdiv(B, BLOCK_B)
    tile_c = program // tiles_b
    tile_b = program - tile_c * tiles_b
    b = tile_b * BLOCK_B + tl.arange(0, BLOCK_B)
    c = tile_c * BLOCK_C + tl.arange(0, BLOCK_C)
    return program, tile_b, tile_c, b, c


@triton.jit
def _products(
    image_ptr,
    text_ptr,
    b,
    c,
    k,
    B,
    C,
    D,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``f_b . t_kc`` of one prompt."""
    image_row = image_ptr + b * D
    text_row = text_ptr + (k * C + c) * D
    acc = tl.zeros([BLOCK_B, BLOCK_C], tl.float32)
    for first in range(0, D, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        f_mask = (b < B)[:, None] & (d < D)[None, :]
        t_mask = (c < C)[None, :] & (d < D)[:, None]
        f = tl.load(image_row[:, None] + d[None, :], mask=f_mask, other=0.0)
        t = tl.load(text_row[None, :] + d[:, None], mask=t_mask, other=0.0)
        f, t = _operand(f, WIDEN), _operand(t, WIDEN)
        acc = tl.dot(f, t, acc, input_precision=PRECISION)
    return acc


@triton.jit
def _gram_rows(gram_ptr, k, j, c, C, K):
    """``G_c[k, j]`` of one prompt ``k`` and some others ``j``, ``[SLICE, BLOCK_C]``."""
    mask = (j < K)[:, None] & (c < C)[None, :]
    return tl.load(gram_ptr + (k * K + j)[:, None] * C + c[None, :], mask=mask, other=0.0)


@triton.jit
def _weights(router_ptr, at, mask, peak, temperature):
    """Not yet divided by their sum. Other rows are zeros: minus infinity would make them NaN."""
    x = tl.load(router_ptr + at, mask=mask, other=0.0).to(tl.float32)
    return tl.where(mask, tl.exp((x - peak) / temperature), 0.0)


@triton.jit
def _forward_kernel(
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
    dots = tl.zeros([BLOCK_B, BLOCK_C], tl.float32)
    squared = tl.zeros([BLOCK_B, BLOCK_C], tl.float32)
    for k in range(K):
        p = _products(
            image_ptr, text_ptr, b, c, k, B, C, D, PRECISION, WIDEN, BLOCK_B, BLOCK_C, BLOCK_D
        )
        w_k = _weights(router_ptr, b * K + k, b < B, peak, temperature) / total
        inv = tl.load(inv_norm_ptr + k * C + c, mask=c < C, other=0.0)
        dots += p * w_k[:, None] * inv[None, :]
        # a few prompts at a time: all weights at once would not fit into registers
        for first in tl.range(0, K, SLICE, num_stages=1):
            j = first + tl.arange(0, SLICE)
            mask = (b < B)[:, None] & (j < K)[None, :]
            at_j = b[:, None] * K + j[None, :]
            w_j = _weights(router_ptr, at_j, mask, peak[:, None], temperature) / total[:, None]
            rows = _gram_rows(gram_ptr, k, j, c, C, K)
            squared = tl.dot(w_j * w_k[:, None], rows, squared, input_precision="ieee")
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
    """``M_bkc = alpha P + 2 beta V``, summed over a tile's classes (``dw``) and over its images,
    by ``w_bk`` (``along``, which is ``dt^_kc . t^_kc``); what is not wanted has no pointer.
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
        for k in range(K):
            p = _products(
                image_ptr, text_ptr, b, c, k, B, C, D, PRECISION, WIDEN, BLOCK_B, BLOCK_C, BLOCK_D
            )
            v = tl.zeros([BLOCK_B, BLOCK_C], tl.float32)
            for first in tl.range(0, K, SLICE, num_stages=1):
                j = first + tl.arange(0, SLICE)
                inside = (b < B)[:, None] & (j < K)[None, :]
                w = tl.load(weights_ptr + b[:, None] * K + j[None, :], mask=inside, other=0.0)
                v = tl.dot(w, _gram_rows(gram_ptr, k, j, c, C, K), v, input_precision="ieee")
            inv = tl.load(inv_norm_ptr + k * C + c, mask=c < C, other=0.0)
            m = alpha * p * inv[None, :] + twice_beta * v
            if dw_ptr is not None:
                tl.store(dw_ptr + (tile_c * B + b) * K + k, tl.sum(m, 1), mask=b < B)
            if along_ptr is not None:
                w_k = tl.load(weights_ptr + b * K + k, mask=b < B, other=0.0)
                along = tl.sum(m * w_k[:, None], 0)
                tl.store(along_ptr + (tile_b * K + k) * C + c, along, mask=c < C)


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
    BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``sum_kc w_bk alpha_bc t^_kc`` over ``n_steps`` blocks of classes."""
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
            inv = tl.load(inv_norm_ptr + k * C + c, mask=c < C, other=0.0)
            row = text_ptr + (k * C + c) * D
            t = tl.load(row[:, None] + d[None, :], mask=t_mask, other=0.0).to(tl.float32)
            share = alpha * w_k[:, None] * inv[None, :]
            acc = tl.dot(share, t, acc, input_precision=PRECISION)
    to = parts_ptr + (part * B + b)[:, None] * D + d[None, :]
    tl.store(to, acc, mask=(b < B)[:, None] & (d < D)[None, :])


@triton.jit
def _text_gradient_kernel(
    image_ptr,
    text_ptr,
    inv_norm_ptr,
    weights_ptr,
    alpha_ptr,
    twice_beta_ptr,
    along_ptr,
    dtext_ptr,
    n_along,
    B,
    C,
    K,
    D,
    PRECISION: tl.constexpr,
    CLASSES: tl.constexpr,
    ROWS: tl.constexpr,
    SLICE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``ROWS`` pairs of a prompt and one of ``CLASSES`` classes, and a block of the width.

    ``Gamma`` is block-diagonal in the classes: one product of all rows with all rows, masked.
    """
    program = tl.program_id(0).to(tl.int64)
    tiles_d = tl.cdiv(D, BLOCK_D)
    tile_c = program // tiles_d
    d = (program - tile_c * tiles_d) * BLOCK_D + tl.arange(0, BLOCK_D)
    pair = tl.arange(0, ROWS)
    k, local = pair // CLASSES, pair % CLASSES
    c = tile_c * CLASSES + local
    real = (k < K) & (c < C)
    acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for first in range(0, B, BLOCK_B):
        b = (first + tl.arange(0, BLOCK_B)).to(tl.int64)
        mask = real[:, None] & (b < B)[None, :]
        f_mask = (b < B)[:, None] & (d < D)[None, :]
        w = tl.load(weights_ptr + b[None, :] * K + k[:, None], mask=mask, other=0.0)
        alpha = tl.load(alpha_ptr + b[None, :] * C + c[:, None], mask=mask, other=0.0)
        f = tl.load(image_ptr + b[:, None] * D + d[None, :], mask=f_mask, other=0.0)
        acc = tl.dot(w * alpha, f.to(tl.float32), acc, input_precision=PRECISION)
    # a few columns of Gamma at a time: all of it would not fit into registers
    for start in range(0, ROWS, SLICE):
        column = start + tl.arange(0, SLICE)
        j, local_j = column // CLASSES, column % CLASSES
        c_j = tile_c * CLASSES + local_j
        real_j = (j < K) & (c_j < C)
        gamma = tl.zeros([ROWS, SLICE], tl.float32)
        for first in range(0, B, BLOCK_B):
            b = (first + tl.arange(0, BLOCK_B)).to(tl.int64)
            mask = real[:, None] & (b < B)[None, :]
            mask_j = (b < B)[:, None] & real_j[None, :]
            w = tl.load(weights_ptr + b[None, :] * K + k[:, None], mask=mask, other=0.0)
            w_j = tl.load(weights_ptr + b[:, None] * K + j[None, :], mask=mask_j, other=0.0)
            at_j = b[:, None] * C + c_j[None, :]
            w_j *= tl.load(twice_beta_ptr + at_j, mask=mask_j, other=0.0)
            gamma = tl.dot(w, w_j, gamma, input_precision=PRECISION)
        row_j = j * C + c_j
        inv_j = tl.load(inv_norm_ptr + row_j, mask=real_j, other=0.0)
        # of t, not t^: bfloat16 and float16 values are exact in TF32, normalised ones are not
        gamma = tl.where(local[:, None] == local_j[None, :], gamma * inv_j[None, :], 0.0)
        mask_j = real_j[:, None] & (d < D)[None, :]
        t_j = tl.load(text_ptr + row_j[:, None] * D + d[None, :], mask=mask_j, other=0.0)
        acc = tl.dot(gamma, t_j.to(tl.float32), acc, input_precision=PRECISION)
    row = k * C + c
    mask = real[:, None] & (d < D)[None, :]
    at = row[:, None] * D + d[None, :]
    if along_ptr is not None:
        along = tl.zeros([ROWS], tl.float32)
        for tile_b in range(n_along):
            part = tl.cast(tile_b, tl.int64) * K * C
            along += tl.load(along_ptr + part + row, mask=real, other=0.0)
        inv = tl.load(inv_norm_ptr + row, mask=real, other=0.0)
        t = tl.load(text_ptr + at, mask=mask, other=0.0).to(tl.float32)
        acc = (acc - t * (along * inv)[:, None]) * inv[:, None]
    tl.store(dtext_ptr + at, acc.to(dtext_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _add_up(parts_ptr, sum_ptr, n, here, BLOCK: tl.constexpr):
    """``n`` numbers to one, by the program for which ``here`` holds."""
    if here:
        total = tl.zeros([BLOCK], tl.float32)
        for first in range(0, n, BLOCK):
            part = first + tl.arange(0, BLOCK)
            total += tl.load(parts_ptr + part, mask=part < n, other=0.0)
        tl.store(sum_ptr, tl.sum(total))


@triton.jit
def _finish_kernel(
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
    """One image: its parts added up, and the softmax's backward; the first also adds up dscale."""
    b = tl.program_id(0).to(tl.int64)
    if dimage_ptr is not None:
        d = tl.arange(0, BLOCK_D)
        total = tl.zeros([BLOCK_D], tl.float32)
        for i in range(n_parts):
            total += tl.load(parts_ptr + (i * B + b) * D + d, mask=d < D, other=0.0)
        tl.store(dimage_ptr + b * D + d, total.to(dimage_ptr.dtype.element_ty), mask=d < D)
    if drouter_ptr is not None:
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
    if dscale_ptr is not None:
        _add_up(dscale_parts_ptr, dscale_ptr, n_dscale, b == 0, BLOCK_D)
