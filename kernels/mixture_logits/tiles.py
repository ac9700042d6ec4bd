"""Device functions shared by the mixture's kernels: tiles, products and rows of Gram matrices."""

import triton
import triton.language as tl


@triton.jit
def _inverse_root(squared):
    """Return ``squared ** -0.5``, or 0 where ``squared`` is 0 or, by rounding, negative."""
    positive = squared > 0
    return tl.where(positive, tl.rsqrt(tl.where(positive, squared, 1.0)), 0.0)


@triton.jit
def _operand(x, WIDEN: tl.constexpr):
    """Cast to float32 under the interpreter, which would multiply the bits of bfloat16 values."""
    if WIDEN:
        return x.to(tl.float32)
    else:
        return x


@triton.jit
def _rounded(x, PRECISION: tl.constexpr):
    """Round to the nearest TF32 value; a tensor core would truncate."""
    if PRECISION == "tf32":
        near = ((x.to(tl.int32, bitcast=True) + 0x1000) & -8192).to(tl.float32, bitcast=True)
        return tl.where(x == x, near, x)
    else:
        return x


@triton.jit
def _add_folded(acc, share, x, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """Add ``share @ x``: float32 shares are rounded to bfloat16 if ``x`` is, otherwise to TF32.

    Shares are weights times gradients, which may be out of float16's range.
    """
    if x.dtype == tl.bfloat16:
        share = _operand(share.to(tl.bfloat16), WIDEN)
        return tl.dot(share, _operand(x, WIDEN), acc, input_precision=PRECISION)
    else:
        return tl.dot(_rounded(share, PRECISION), x.to(tl.float32), acc, input_precision=PRECISION)


@triton.jit
def _tile(B, C, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return this program's part, images and classes; those of the same classes are neighbors."""
    program = tl.program_id(0).to(tl.int64)
    tiles_b, tiles_c = tl.cdiv(B, BLOCK_B), tl.cdiv(C, BLOCK_C)
    part = program // (tiles_b * tiles_c)
    program -= part * (tiles_b * tiles_c)
    tile_c = program // tiles_b
    tile_b = program - tile_c * tiles_b
    b = tile_b * BLOCK_B + tl.arange(0, BLOCK_B)
    c = tile_c * BLOCK_C + tl.arange(0, BLOCK_C)
    return part, tile_b, tile_c, b, c


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
    """Return ``t_kc . f_b`` of one prompt, ``[BLOCK_C, BLOCK_B]``."""
    acc = tl.zeros([BLOCK_C, BLOCK_B], tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        t_mask = (c < C)[:, None] & (d < D)[None, :]
        f_mask = (b < B)[None, :] & (d < D)[:, None]
        t = tl.load(text_ptr + ((k * C + c) * D)[:, None] + d[None, :], mask=t_mask, other=0.0)
        f = tl.load(image_ptr + (b * D)[None, :] + d[:, None], mask=f_mask, other=0.0)
        acc = tl.dot(_operand(t, WIDEN), _operand(f, WIDEN), acc, input_precision=PRECISION)
    return acc


@triton.jit
def _gram_rows(gram_ptr, k, j, c, C, K):
    """Load ``G_c[k, j]`` of one prompt ``k`` and several prompts ``j``, ``[SLICE, BLOCK_C]``."""
    mask = (j < K)[:, None] & (c < C)[None, :]
    pair = (k * K + j).to(tl.int64)
    return tl.load(gram_ptr + pair[:, None] * C + c[None, :], mask=mask, other=0.0)
