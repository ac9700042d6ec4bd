"""Reference implementation of attention over a shared prefix, query by query, for tests."""

from itertools import pairwise

import torch
from torch import Tensor


def prefix_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    cu_seqlens: Tensor,
    last_only: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Return ``softmax(scale * q_i [prefix_k; k_start..i]^T) [prefix_v; v_start..i]`` per token i.

    ``start`` is the first token of i's class. This is causal attention (Vaswani et al., "Attention
    is all you need", 2017, section 3.2) over sequences with the same prefix. With ``w`` a query's
    weights and ``o`` its output, ``dv = w^T do``, ``ds = w * (do v^T - do . o)``,
    ``dq = scale * ds k`` and ``dk = scale * ds^T q``.

    Args:
        q: ``[K, N, H, d]``; with ``last_only``, of each class's last token, ``[K, C, H, d]``.
        k, v: packed tokens of C classes, ``[K, N, H, d]``.
        prefix_k, prefix_v: ``[K, P, H, d]``.
        cu_seqlens: start of each class's tokens, followed by N, ``[C + 1]``.
        scale: ``d ** -0.5`` by default.

    Returns:
        Like ``q``.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    rows: list[Tensor] = []
    for start, end in pairwise(cu_seqlens.tolist()):
        for i in [end - 1] if last_only else range(start, end):
            keys = torch.cat([prefix_k, k[:, start : i + 1]], dim=1)  # [K, P + i + 1 - start, H, d]
            values = torch.cat([prefix_v, v[:, start : i + 1]], dim=1)
            scores = scale * torch.einsum("khd,kshd->khs", q[:, len(rows)], keys)
            rows.append(torch.einsum("khs,kshd->khd", scores.softmax(dim=-1), values))
    return torch.stack(rows, dim=1)
