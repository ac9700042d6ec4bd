"""Arguments of the registered ops, in the order of their schemas."""

from typing import NamedTuple

from torch import Tensor


class Attention(NamedTuple):
    """Arguments of `eager.prefix_attention`.

    Attributes:
        q: ``[K, M, H, d]``, M = N, or M = C with ``last_only``.
        k, v: ``[K, N, H, d]``.
        prefix_k, prefix_v: ``[K, P, H, d]``.
        cu_seqlens: ``[C + 1]``; the plain implementation reads its values.
        classes: each token's class, ``[N]``; the plain implementation does not use it.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    prefix_k: Tensor
    prefix_v: Tensor
    cu_seqlens: Tensor
    classes: Tensor | None
    last_only: bool
    scale: float


class AttentionBackward(NamedTuple):
    """Arguments of the backward: gradient, inputs and outputs of `eager.prefix_attention`."""

    dout: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    prefix_k: Tensor
    prefix_v: Tensor
    cu_seqlens: Tensor
    classes: Tensor | None
    out: Tensor
    lse: Tensor
    last_only: bool
    scale: float
    need_q: bool
    need_kv: bool
    need_prefix: bool
