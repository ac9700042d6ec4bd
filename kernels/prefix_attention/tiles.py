"""Tiles of packed tokens: their place, their rows in memory, and what they see.

Program ids, and with them all addresses, are 64 bits wide.
"""

import math

import triton
import triton.language as tl

from .._dispatch import interpreted

# the interpreter would multiply bfloat16 as the integers that it is kept in
_WIDEN = tl.constexpr(interpreted())
LOG2E = tl.constexpr(math.log2(math.e))
LN2 = tl.constexpr(math.log(2))


@triton.jit
def place(tiles, heads):
    """Tile, head and prompt of this program."""
    program = tl.program_id(0).to(tl.int64)
    tile, rest = program % tiles, program // tiles
    return tile, rest % heads, rest // heads


@triton.jit
def class_of(tokens, cu_ptr, n_classes, steps):
    """The class of each packed token: the last one that starts at it or before."""
    low = tokens * 0
    high = low + n_classes
    for _ in range(steps):
        middle = (low + high) >> 1
        before = tl.load(cu_ptr + middle) <= tokens
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
    return low


@triton.jit
def load_rows(ptr, rows, stride, inside, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """``[rows, BLOCK_D]``, zeros beyond D and outside."""
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
def span(rows, n_queries, cu_ptr, n_classes, steps, LAST_ONLY: tl.constexpr):
    """First and last of their own class's tokens that these queries see.

    Rows behind the last query see what that one sees: every row has something to see.
    """
    query = tl.minimum(rows, n_queries - 1)
    if LAST_ONLY:
        return tl.load(cu_ptr + query).to(tl.int64), tl.load(cu_ptr + query + 1).to(tl.int64) - 1
    else:
        own = class_of(query, cu_ptr, n_classes, steps)
        return tl.load(cu_ptr + own).to(tl.int64), query


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """``a @ b``, summed in float32."""
    if _WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)
