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
def _tile(B, C, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return this program's images and classes; programs with the same classes are neighbors."""
    program = tl.program_id(0).to(tl.int64)
    tiles_b = tl.cdiv(B, BLOCK_B)
    tile_c = program // tiles_b
    tile_b = program - tile_c * tiles_b
    b = tile_b * BLOCK_B + tl.arange(0, BLOCK_B)
    c = tile_c * BLOCK_C + tl.arange(0, BLOCK_C)
    return program, tile_b, tile_c, b, c


@triton.jit
def _add_product(
    acc,
    image_ptr,
    text_ptr,
    b,
    c,
    k,
    d,
    B,
    C,
    D,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Add ``f_b . t_kc`` of one prompt over a block of the width to ``acc``."""
    f_mask = (b < B)[:, None] & (d < D)[None, :]
    t_mask = (c < C)[None, :] & (d < D)[:, None]
    f = tl.load(image_ptr + b[:, None] * D + d[None, :], mask=f_mask, other=0.0)
    t = tl.load(text_ptr + ((k * C + c) * D)[None, :] + d[:, None], mask=t_mask, other=0.0)
    return tl.dot(_operand(f, WIDEN), _operand(t, WIDEN), acc, input_precision=PRECISION)


@triton.jit
def _gram_rows(gram_ptr, k, j, c, C, K):
    """Load ``G_c[k, j]`` of one prompt ``k`` and several prompts ``j``, ``[SLICE, BLOCK_C]``."""
    mask = (j < K)[:, None] & (c < C)[None, :]
    pair = (k * K + j).to(tl.int64)
    return tl.load(gram_ptr + pair[:, None] * C + c[None, :], mask=mask, other=0.0)
