"""Attention with a shared prefix from torch's variable-length flash attention, a fair baseline.

Neither copies nor padding: flash attention of each class over its own tokens, and of all tokens
over the prefix, merged by their log-sums. Flash attention needs bfloat16 or float16.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sequences:
    """Starts of the packed queries' and keys' sequences, followed by their number, int32."""

    queries: Tensor
    keys: Tensor
    longest_query: int
    longest_key: int
    causal: bool


def flash(q: Tensor, k: Tensor, v: Tensor, over: Sequences) -> tuple[Tensor, Tensor]:
    """Return the attention ``[N, H, d]`` of packed sequences, and its log-sums ``[H, N]``."""
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        *(q, k, v, over.queries, over.keys, over.longest_query, over.longest_key),
        *(0.0, over.causal, False),
    )
    return out, lse


def flash_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, over: Sequences
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values, with the weights ``exp(scores - lse)``."""
    unused = torch.empty(2, dtype=torch.uint64, device=q.device)  # the state of a dropout
    return torch.ops.aten._flash_attention_backward(
        *(dout, q, k, v, out, lse, over.queries, over.keys, over.longest_query),
        *(over.longest_key, 0.0, over.causal, unused, unused),
    )


class _Merged(torch.autograd.Function):
    """With the merged output and log-sum, each part's backward pass gives its exact share."""

    @staticmethod
    def forward(ctx: Any, parts: Any, calls: Any, *tensors: Tensor) -> Tensor:
        q, k, v, prefix_k, prefix_v = tensors
        pairs = ((k, v), (prefix_k, prefix_v))
        (own, own_lse), (front, front_lse) = (
            calls[0](q, *pair, over) for pair, over in zip(pairs, parts, strict=True)
        )
        lse = torch.logaddexp(own_lse, front_lse)
        weights = ((part - lse).exp().T[..., None] for part in (own_lse, front_lse))  # [N, H, 1]
        out = sum(w * o for w, o in zip(weights, (own, front), strict=True)).to(q.dtype)
        ctx.save_for_backward(*tensors, out, lse)
        ctx.parts, ctx.call = parts, calls[1]
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Any, ...]:
        q, k, v, prefix_k, prefix_v, out, lse = ctx.saved_tensors
        dout = dout.contiguous()
        (dq, *own), (more, *front) = (
            ctx.call(dout, q, *pair, out, lse, over)
            for pair, over in zip(((k, v), (prefix_k, prefix_v)), ctx.parts, strict=True)
        )
        return None, None, dq + more, *own, *front


def merged_prefix(
    lengths: list[int],
    prefix: int,
    device: str,
    calls: tuple[Callable[..., Any], Callable[..., Any]] = (flash, flash_backward),
) -> Callable[..., Tensor]:
    """Return a function of the tensors of `prefix_attention`, with K = 1.

    Args:
        lengths: number of tokens of each class.
        prefix: number of tokens of the prefix.
        calls: attention of packed sequences and its gradients.
    """

    def starts(*sizes: int) -> Tensor:
        return torch.tensor([0, *sizes]).cumsum(0).to(device, torch.int32)

    own, total = starts(*lengths), sum(lengths)
    parts = (
        Sequences(own, own, max(lengths), max(lengths), causal=True),
        Sequences(starts(total), starts(prefix), total, prefix, causal=False),
    )

    def run(*tensors: Tensor) -> Tensor:
        return _Merged.apply(parts, calls, *(t[0] for t in tensors))[None]

    return run
