"""Triton kernel of the random start; gives the same bits as the plain implementation."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import Start

_COUNTERS = 512  # per program, each for four neighboring entries


@triton.jit
def _random_start_kernel(
    x_ptr,
    indices_ptr,
    key_ptr,
    out_ptr,
    epses_ptr,
    eps,
    lo,
    hi,
    n,
    chunks,
    ONE_SIDED: tl.constexpr,
    COUNTERS: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    row = program // chunks
    chunk = program - row * chunks
    seed, restart = tl.load(key_ptr), tl.load(key_ptr + 1)
    image = tl.load(indices_ptr + row)
    block = (chunk * COUNTERS + tl.arange(0, COUNTERS)).to(tl.uint32)
    zero = block * 0
    a, b, c, d = tl.philox(
        seed,
        block,
        zero + restart.to(tl.uint32),
        zero + image.to(tl.uint32),
        zero + (image >> 32).to(tl.uint32),
    )
    # two interleavings put the four words of a counter next to each other
    words = tl.interleave(tl.interleave(a, c), tl.interleave(b, d))
    unit = tl.uint_to_uniform_float(words)
    if epses_ptr is not None:
        radius = tl.load(epses_ptr + row).to(tl.float32)
    else:
        radius = tl.cast(eps, tl.float32)
    noise = unit * radius if ONE_SIDED else (unit * 2 - 1) * radius
    entries = chunk * 4 * COUNTERS + tl.arange(0, 4 * COUNTERS)
    mask = entries < n
    moved = tl.load(x_ptr + row * n + entries, mask=mask, other=0.0) + noise
    # propagate NaN as torch does
    moved = tl.maximum(moved, tl.cast(lo, tl.float32), propagate_nan=tl.PropagateNan.ALL)
    moved = tl.minimum(moved, tl.cast(hi, tl.float32), propagate_nan=tl.PropagateNan.ALL)
    tl.store(out_ptr + row * n + entries, moved, mask=mask)


def launch_random_start(start: Start) -> Tensor:
    """Launch the kernel of `eager.random_start`."""
    x = start.x.contiguous()
    out = torch.empty_like(x)
    if not out.numel():
        return out
    n = x[0].numel()
    chunks = triton.cdiv(n, 4 * _COUNTERS)
    _random_start_kernel[(len(x) * chunks,)](
        x,
        start.indices.contiguous(),
        start.key.contiguous(),
        out,
        start.epses,
        start.eps,
        start.lo,
        start.hi,
        n,
        chunks,
        ONE_SIDED=start.one_sided,
        COUNTERS=_COUNTERS,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return out
