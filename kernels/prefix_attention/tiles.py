"""Device functions for tiles of packed tokens: position, loads and stores, visible keys.

Program ids, and therefore all offsets, have 64 bits.
"""

import math

import triton
import triton.language as tl

from .._dispatch import interpreted

# the interpreter stores bfloat16 values as integers and would multiply these
_WIDEN = tl.constexpr(interpreted())
LOG2E = tl.constexpr(math.log2(math.e))
LN2 = tl.constexpr(math.log(2))


@triton.jit
def place(tiles, heads):
    """Return this program's tile, head and prompt."""
    program = tl.program_id(0).to(tl.int64)
    tile, rest = program % tiles, program // tiles
    return tile, rest % heads, rest // heads


@triton.jit
def load_rows(ptr, rows, stride, inside, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load ``[rows, BLOCK_D]``, with zeros beyond D and where ``inside`` is false."""
    columns = tl.arange(0, BLOCK_D)
    mask = inside[:, None]
    if D < BLOCK_D:
        mask = mask & (columns[None, :] < D)
    return tl.load(ptr + rows[:, None] * stride + columns[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(ptr, rows, stride, inside, value, D: tl.constexpr, BLOCK_D: tl.constexpr):
    columns = tl.arange(0, BLOCK_D)
    mask = inside[:, None]
    if D < BLOCK_D:
        mask = mask & (columns[None, :] < D)
    value = value.to(ptr.dtype.element_ty)
    tl.store(ptr + rows[:, None] * stride + columns[None, :], value, mask=mask)


@triton.jit
def span(rows, n_queries, cu_ptr, classes_ptr, LAST_ONLY: tl.constexpr):
    """Return the first and the last token of their own class that these queries see.

    Rows beyond the last query see the same tokens as the last query, so no row is fully masked.
    """
    query = tl.minimum(rows, n_queries - 1)
    if LAST_ONLY:
        return tl.load(cu_ptr + query).to(tl.int64), tl.load(cu_ptr + query + 1).to(tl.int64) - 1
    else:
        own = tl.load(classes_ptr + query)
        return tl.load(cu_ptr + own).to(tl.int64), query


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """Return ``a @ b``, accumulated in float32."""
    if _WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)
