"""What the attention and its gradients take, in the order of the registered ops."""

from typing import NamedTuple

from torch import Tensor


class Attention(NamedTuple):
    """`eager.prefix_attention`.

    Attributes:
        q: ``[K, M, H, d]``, M = N, or with ``last_only`` M = C.
        k, v: ``[K, N, H, d]``.
        prefix_k, prefix_v: ``[K, P, H, d]``.
        cu_seqlens: ``[C + 1]``; plain code reads its values.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    prefix_k: Tensor
    prefix_v: Tensor
    cu_seqlens: Tensor
    last_only: bool
    scale: float


class AttentionBackward(NamedTuple):
    """`eager.prefix_attention_backward`: a gradient, inputs and results of the forward op."""

    dout: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    prefix_k: Tensor
    prefix_v: Tensor
    cu_seqlens: Tensor
    out: Tensor
    lse: Tensor
    last_only: bool
    scale: float
    need_q: bool
    need_kv: bool
    need_prefix: bool
