"""Launchers of the attention's kernels: tile sizes, grids and outputs."""

from dataclasses import dataclass, replace

import torch
import triton
from torch import Tensor

from .._dispatch import dot_precision
from . import kernel, key_kernel
from .arguments import Attention, AttentionBackward
from .classes import token_classes

# the prefix gradients' sum over queries is split into at most _CHUNKS chunks per head, to get about
# _PROGRAMS programs in total if there is enough work
_PROGRAMS = 512
_CHUNKS = 64


@dataclass(frozen=True)
class _Tiles:
    """Tile sizes.

    Attributes:
        queries: queries per tile of the forward kernel.
        turning: queries per tile of the backward kernel of the queries.
        keys: keys that these two kernels process at a time, of the suffixes or the prefix.
        held: keys per tile of the backward kernels of the suffix and the prefix keys.
        passing: queries that the backward kernel of the suffix keys processes at a time.
        crossing: queries that the backward kernel of the prefix keys processes at a time.
        own_stages: pipeline stages of the backward kernels of queries and suffix keys.
        prefix_stages: pipeline stages of the backward kernel of the prefix keys.
    """

    queries: int
    turning: int
    keys: int
    held: int
    passing: int
    crossing: int
    own_stages: int = 2
    prefix_stages: int = 2


def _tiles(q: Tensor, last_only: bool) -> _Tiles:
    """Return the largest tile sizes that fit into registers on all target GPUs."""
    wide = q.shape[-1] > 64
    if q.dtype == torch.float32:
        # float32 takes three TF32 products, whose split operands need more registers
        tiles = _Tiles(16, 16, 16, 16, 16, 16, 1, 1) if wide else _Tiles(32, 16, 16, 32, 16, 16, 1)
    else:
        tiles = _Tiles(64, 64, 32, 32, 32, 64) if wide else _Tiles(64, 64, 32, 64, 32, 64)
    if last_only:
        # each query sees only its own class: most of a large tile would be masked
        tiles = replace(tiles, queries=16, turning=16, passing=16)
    rows = q.shape[1]
    return replace(tiles, queries=_block(rows, tiles.queries), turning=_block(rows, tiles.turning))


def _block(rows: int, most: int) -> int:
    """Return the smallest tile for ``rows``, at most ``most``; `tl.dot` needs at least 16."""
    return min(most, max(16, triton.next_power_of_2(rows)))


def _rows(tensor: Tensor) -> Tensor:
    """Return a tensor in which the entries of a head are contiguous, copied if needed."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for t in tensors for stride in t.stride()[:3]]


def _options(q: Tensor) -> dict[str, int | str | bool]:
    """Return the options shared by all kernels."""
    d = q.shape[-1]
    return {
        "D": d,
        "BLOCK_D": max(16, triton.next_power_of_2(d)),
        "PRECISION": dot_precision(q.dtype),
        "num_warps": 4,
        "enable_fp_fusion": True,  # the default differs between Triton versions
    }


def _classes(given: Attention | AttentionBackward) -> Tensor:
    if given.classes is None:
        return token_classes(given.cu_seqlens, given.k.shape[1])
    return given.classes.contiguous()


def launch_prefix_attention(given: Attention) -> tuple[Tensor, Tensor]:
    """Launch the kernel of `eager.prefix_attention`."""
    q, k, v, prefix_k, prefix_v, cu_seqlens, _, last_only, scale = given
    prompts, rows, heads, _ = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
    if not out.numel():
        return out, lse
    tensors = [_rows(t) for t in (q, k, v, prefix_k, prefix_v)]
    tiles = _tiles(q, last_only)
    n_tiles = triton.cdiv(rows, tiles.queries)
    kernel._prefix_attention_kernel[(n_tiles * heads * prompts,)](
        *tensors,
        cu_seqlens.contiguous(),
        _classes(given),
        out,
        lse,
        scale,
        n_tiles,
        heads,
        rows,
        prefix_k.shape[1],
        *_strides(*tensors),
        LAST_ONLY=last_only,
        BLOCK_M=tiles.queries,
        BLOCK_N=tiles.keys,
        BLOCK_P=_block(prefix_k.shape[1], tiles.keys),
        num_stages=2,
        **_options(q),
    )
    return out, lse


def launch_prefix_attention_backward(
    given: AttentionBackward,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Launch the four backward kernels: queries, suffix keys, prefix keys, sum of prefix parts."""
    dout, q, k, v, prefix_k, prefix_v, cu_seqlens, _, out, lse = given[:10]
    last_only, scale, need_q, need_kv, need_prefix = given[10:]
    if not q.numel():
        kept = (need_q, need_kv, need_kv, need_prefix, need_prefix)
        inputs = (q, k, v, prefix_k, prefix_v)
        dq, dk, dv, dprefix_k, dprefix_v = (
            t.new_zeros(t.shape if need else 0) for t, need in zip(inputs, kept, strict=True)
        )
        return dq, dk, dv, dprefix_k, dprefix_v
    prompts, rows, heads, _ = q.shape
    dout, q, k, v, prefix_k, prefix_v = (_rows(t) for t in (dout, q, k, v, prefix_k, prefix_v))
    cu_seqlens, classes = cu_seqlens.contiguous(), _classes(given)
    n_prefix = prefix_k.shape[1]
    tiles, options = _tiles(q, last_only), _options(q)
    # unneeded gradients stay empty, but separate: an op's outputs must not share a tensor
    dq, dk, dv, dprefix_k, dprefix_v = (q.new_empty(0) for _ in range(5))
    if need_q:
        dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    delta = torch.empty_like(lse)
    n_tiles = triton.cdiv(rows, tiles.turning)
    kernel._query_backward_kernel[(n_tiles * heads * prompts,)](
        dout,
        q,
        k,
        v,
        prefix_k,
        prefix_v,
        cu_seqlens,
        classes,
        out,
        lse,
        delta,
        dq if need_q else None,
        scale,
        n_tiles,
        heads,
        rows,
        n_prefix,
        *_strides(dout, q, k, v, prefix_k, prefix_v),
        LAST_ONLY=last_only,
        BLOCK_M=tiles.turning,
        BLOCK_N=tiles.keys,
        BLOCK_P=_block(n_prefix, tiles.keys),
        num_stages=tiles.own_stages,
        # more warps for fewer registers each, but wide heads would hold copies in each warp
        **options | {"num_warps": 8 if q.dtype == torch.float32 and q.shape[-1] <= 64 else 4},
    )
    if need_kv:
        dk, dv = _suffix_keys_backward(
            dout, q, k, v, cu_seqlens, classes, lse, delta, last_only, scale, tiles, options
        )
    if need_prefix:
        dprefix_k, dprefix_v = _prefix_keys_backward(
            dout, q, prefix_k, prefix_v, lse, delta, scale, tiles, options
        )
    return dq, dk, dv, dprefix_k, dprefix_v


def _suffix_keys_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    classes: Tensor,
    lse: Tensor,
    delta: Tensor,
    last_only: bool,
    scale: float,
    tiles: _Tiles,
    options: dict[str, int | str | bool],
) -> tuple[Tensor, Tensor]:
    prompts, tokens, heads, _ = k.shape
    dk, dv = (torch.empty(k.shape, dtype=k.dtype, device=k.device) for _ in range(2))
    n_tiles = triton.cdiv(tokens, tiles.held)
    key_kernel._suffix_keys_backward_kernel[(n_tiles * heads * prompts,)](
        dout,
        q,
        k,
        v,
        cu_seqlens,
        classes,
        lse,
        delta,
        dk,
        dv,
        scale,
        n_tiles,
        heads,
        q.shape[1],
        tokens,
        *_strides(dout, q, k, v),
        LAST_ONLY=last_only,
        BLOCK_M=tiles.passing,
        BLOCK_N=tiles.held,
        num_stages=tiles.own_stages,
        **options,
    )
    return dk, dv


def _prefix_keys_backward(
    dout: Tensor,
    q: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    lse: Tensor,
    delta: Tensor,
    scale: float,
    tiles: _Tiles,
    options: dict[str, int | str | bool],
) -> tuple[Tensor, Tensor]:
    prompts, n_prefix, heads, d = prefix_k.shape
    if not n_prefix:
        return prefix_k.new_zeros(prefix_k.shape), prefix_v.new_zeros(prefix_v.shape)
    rows, held = q.shape[1], _block(n_prefix, tiles.held)
    blocks = triton.cdiv(n_prefix, held)
    wanted = min(_CHUNKS, max(1, _PROGRAMS // (blocks * heads * prompts)))
    # a chunk is a multiple of the tile of queries
    chunk = triton.cdiv(triton.cdiv(rows, tiles.crossing), wanted) * tiles.crossing
    chunks = triton.cdiv(rows, chunk)
    shape = (chunks, 2, prompts, n_prefix, heads, d)
    parts = torch.empty(shape, dtype=torch.float32, device=q.device)
    key_kernel._prefix_keys_backward_kernel[(chunks * blocks * heads * prompts,)](
        dout,
        q,
        prefix_k,
        prefix_v,
        lse,
        delta,
        parts,
        scale,
        chunks * blocks,
        heads,
        prompts,
        rows,
        n_prefix,
        chunk,
        *_strides(dout, q, prefix_k, prefix_v),
        BLOCK_M=tiles.crossing,
        BLOCK_P=held,
        # float32 products have smaller tiles, and would need more registers than there are
        TRANSPOSED=q.element_size() == 2,
        num_stages=tiles.prefix_stages,
        **options,
    )
    # contiguous and separate tensors: an op's outputs must not share memory
    dprefix_k, dprefix_v = (
        torch.empty(prefix_k.shape, dtype=prefix_k.dtype, device=q.device) for _ in range(2)
    )
    n = dprefix_k.numel()
    key_kernel._sum_prefix_parts_kernel[(triton.cdiv(n, 64),)](
        parts,
        dprefix_k,
        dprefix_v,
        n,
        chunks,
        BLOCK=64,
        BLOCK_CHUNKS=16,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return dprefix_k, dprefix_v
