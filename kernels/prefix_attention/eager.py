"""Plain PyTorch implementation of the attention and its gradients; runs on the CPU.

Classes of equal length are computed together, with few passes over the large tensors: this is the
hot path of a text tower on the CPU. If classes of equal length are not adjacent, their tokens are
gathered first.
"""

import torch
from torch import Tensor

from .._dispatch import wide_dtype
from .arguments import Attention, AttentionBackward
from .groups import Group, group


def prefix_attention(given: Attention) -> tuple[Tensor, Tensor]:
    """Return ``softmax(scale * q [prefix_k; own k]^T) [prefix_v; own v]``, and the log-sum-exp.

    A query attends to the whole prefix and, in its own class, to itself and the tokens before it.

    Returns:
        A tensor like ``q``, and ``log sum exp`` of each query's scores, ``[K, M, H]``, at least
        float32.
    """
    q, k, v, prefix_k, prefix_v, cu_seqlens, _, last_only, scale = given
    dtype, wide = q.dtype, wide_dtype(q)
    groups = group(cu_seqlens, k.shape[1], last_only)
    q = _take(q, groups.queries, wide)
    k, v = (_take(t, groups.tokens, wide) for t in (k, v))
    front_k, front_v = (t.to(wide).transpose(1, 2) for t in (prefix_k, prefix_v))  # [K, H, P, d]
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = out.new_empty(out.shape[:-1])
    front = (q.transpose(1, 2) @ front_k.transpose(-1, -2)).mul_(scale)  # [K, H, M, P]
    for some in groups.groups:
        _attend_group(q, k, v, front, some, scale, out, lse)
    for o, weights, values in zip(out, front, front_v, strict=True):
        o.transpose(0, 1).baddbmm_(weights, values)
    return _put_back(out, groups.queries, dtype), _put_back(lse, groups.queries, wide)


def _attend_group(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    front: Tensor,
    some: Group,
    scale: float,
    out: Tensor,
    lse: Tensor,
) -> None:
    """Compute one group's softmax weights, and its output over its own tokens.

    Args:
        front: scores over the prefix, ``[K, H, M, P]``; the group's are replaced by weights.
        out, lse: the group's entries are written.
    """
    n, rows = some.classes, some.rows
    own_q = _by_head(q[:, some.queries], n, rows)  # [K, n, H, rows, d]
    own_k, own_v = (_by_head(t[:, some.tokens], n, some.length) for t in (k, v))
    own = (own_q @ own_k.transpose(-1, -2)).mul_(scale)  # [K, n, H, rows, length]
    if rows > 1:
        later = torch.ones(rows, rows, dtype=torch.bool, device=q.device).triu_(1)
        own.masked_fill_(later, float("-inf"))
    shared = front[:, :, some.queries].unflatten(2, (n, rows)).transpose(1, 2)
    weights = torch.cat([shared, own], dim=-1)
    largest = weights.amax(dim=-1, keepdim=True)
    total = weights.sub_(largest).exp_().sum(dim=-1, keepdim=True)
    weights.div_(total)
    _by_head(lse[:, some.queries, :, None], n, rows).copy_(total.log_().add_(largest))
    p = front.shape[-1]
    shared.copy_(weights[..., :p])
    _by_head(out[:, some.queries], n, rows).copy_(weights[..., p:] @ own_v)


def prefix_attention_backward(
    given: AttentionBackward,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of ``q, k, v, prefix_k, prefix_v``, empty where not needed.

    With ``w = exp(scores - lse)``: ``dv = w^T dout``, ``ds = w (dout v^T - sum(dout * out))``,
    ``dq = scale * ds k``, ``dk = scale * ds^T q``.
    """
    dout, q, k, v, prefix_k, prefix_v, cu_seqlens, _, out, lse = given[:10]
    last_only, scale, need_q, need_kv, need_prefix = given[10:]
    dtypes, wide = (q.dtype, k.dtype), lse.dtype
    groups = group(cu_seqlens, k.shape[1], last_only)
    q, dout, out = (_take(t, groups.queries, wide) for t in (q, dout, out))
    lse = _take(lse, groups.queries, wide)
    prefix_k, prefix_v = prefix_k.to(wide), prefix_v.to(wide)
    delta = (dout * out).sum(dim=-1)  # [K, M, H]
    dq, dk, dv, dprefix_k, dprefix_v = (q.new_empty(0) for _ in range(5))
    if need_q or need_prefix:
        dq, dprefix_k, dprefix_v = _prefix_backward(
            dout, q, prefix_k, prefix_v, lse, delta, scale, need_q, need_prefix
        )
    if need_q or need_kv:
        k, v = (_take(t, groups.tokens, wide) for t in (k, v))
        if need_kv:
            dk, dv = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (k, v))
        for some in groups.groups:
            _group_backward(dout, q, k, v, lse, delta, some, scale, dq, dk, dv)
    return (
        _put_back(dq, groups.queries, dtypes[0]),
        _put_back(dk, groups.tokens, dtypes[1]),
        _put_back(dv, groups.tokens, dtypes[1]),
        dprefix_k.to(dtypes[1]),
        dprefix_v.to(dtypes[1]),
    )


def _prefix_backward(
    dout: Tensor,
    q: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    lse: Tensor,
    delta: Tensor,
    scale: float,
    need_q: bool,
    need_prefix: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the prefix gradients and the prefix's part of ``dq``, each in one product."""
    by_head = (t.transpose(1, 2) for t in (q, dout, prefix_k, prefix_v))
    head_q, head_dout, head_k, head_v = by_head  # [K, H, M or P, d]
    lse, delta = (t.transpose(1, 2)[..., None] for t in (lse, delta))  # [K, H, M, 1]
    weights = (head_q @ head_k.transpose(-1, -2)).mul_(scale).sub_(lse).exp_()
    ds = (head_dout @ head_v.transpose(-1, -2)).sub_(delta).mul_(weights).mul_(scale)
    dq, dprefix_k, dprefix_v = (q.new_empty(0) for _ in range(3))
    if need_prefix:
        dprefix_k = (ds.transpose(-1, -2) @ head_q).transpose(1, 2).contiguous()
        dprefix_v = (weights.transpose(-1, -2) @ head_dout).transpose(1, 2).contiguous()
    if need_q:
        dq = (ds @ head_k).transpose(1, 2).contiguous()
    return dq, dprefix_k, dprefix_v


def _group_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    delta: Tensor,
    some: Group,
    scale: float,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
) -> None:
    """Add one group's own tokens' part to ``dq`` and write its ``dk`` and ``dv``, if not empty."""
    n, rows, length = some.classes, some.rows, some.length
    # copy once instead of in each product
    own_q, own_dout = (_by_head(t[:, some.queries], n, rows).contiguous() for t in (q, dout))
    own_k, own_v = (_by_head(t[:, some.tokens], n, length).contiguous() for t in (k, v))
    sums, delta = (_by_head(t[:, some.queries, :, None], n, rows) for t in (lse, delta))
    weights = (own_q @ own_k.transpose(-1, -2)).mul_(scale).sub_(sums).exp_()
    if rows > 1:
        weights.tril_()
    ds = (own_dout @ own_v.transpose(-1, -2)).sub_(delta).mul_(weights).mul_(scale)
    if dq.numel():
        _by_head(dq[:, some.queries], n, rows).add_(ds @ own_k)
    if dk.numel():
        _by_head(dk[:, some.tokens], n, length).copy_(ds.transpose(-1, -2) @ own_q)
        _by_head(dv[:, some.tokens], n, length).copy_(weights.transpose(-1, -2) @ own_dout)


def _by_head(packed: Tensor, classes: int, rows: int) -> Tensor:
    """Return a view of ``[K, classes * rows, H, d]`` as ``[K, classes, H, rows, d]``."""
    return packed.unflatten(1, (classes, rows)).transpose(2, 3)


def _take(packed: Tensor, order: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Reorder from the packed order to the groups' order."""
    return (packed if order is None else packed[:, order]).to(dtype)


def _put_back(grouped: Tensor, order: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Reorder from the groups' order to the packed order."""
    if order is None or not grouped.numel():
        return grouped.to(dtype)
    return torch.empty_like(grouped, dtype=dtype).index_copy_(1, order, grouped.to(dtype))
