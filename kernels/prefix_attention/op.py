"""Op registration, autograd function and public function of the attention."""

from typing import Any

import torch
from torch import Tensor

from .._dispatch import Impl, define, once_differentiable, resolve, wide_dtype
from . import eager
from .arguments import Attention, AttentionBackward
from .check import check_arguments
from .classes import token_classes

# the largest head width whose tiles fit into registers
_WIDEST = 128


def _fake_forward(given: Attention) -> tuple[Tensor, Tensor]:
    q = given.q
    return q.new_empty(q.shape), q.new_empty(q.shape[:-1], dtype=wide_dtype(q))


def _fake_backward(given: AttentionBackward) -> tuple[Tensor, ...]:
    needed = given.need_q, given.need_kv, given.need_kv, given.need_prefix, given.need_prefix
    pairs = zip(given[1:6], needed, strict=True)
    return tuple(t.new_empty(t.shape if need else 0) for t, need in pairs)


def _too_wide(given: Attention | AttentionBackward) -> bool:
    return given.q.shape[-1] > _WIDEST


_forward = define(
    "prefix_attention",
    Attention,
    "(Tensor, Tensor)",
    eager=eager.prefix_attention,
    launch=".launch:launch_prefix_attention",
    fake=_fake_forward,
    unfit=_too_wide,
)
_backward = define(
    "prefix_attention_backward",
    AttentionBackward,
    "(Tensor, Tensor, Tensor, Tensor, Tensor)",
    eager=eager.prefix_attention_backward,
    launch=".launch:launch_prefix_attention_backward",
    fake=_fake_backward,
    unfit=_too_wide,
)


class _PrefixAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, impl: Impl, *arguments: Any) -> Tensor:
        given = Attention(*arguments)
        out, lse = _forward(impl, given)
        ctx.save_for_backward(*given[:7], out, lse)
        ctx.impl, ctx.settings = impl, (given.last_only, given.scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        need_q, need_k, need_v, need_pk, need_pv = ctx.needs_input_grad[1:6]
        needs = need_q, need_k or need_v, need_pk or need_pv
        given = AttentionBackward._make((dout, *ctx.saved_tensors, *ctx.settings, *needs))
        found = zip(_backward(ctx.impl, given), ctx.needs_input_grad[1:6], strict=True)
        return None, *(grad if need else None for grad, need in found), None, None, None, None


def prefix_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    cu_seqlens: Tensor,
    *,
    classes: Tensor | None = None,
    last_only: bool = False,
    scale: float | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Compute attention of packed suffixes over a shared prefix and, causally, over themselves.

    Token i of class c attends to the P prefix tokens, which all classes share, and to the tokens of
    c up to itself::

        softmax(scale * q_i [prefix_k; k_start..i]^T) [prefix_v; v_start..i]

    This is causal attention (Vaswani et al., "Attention is all you need", 2017, section 3.2) over C
    sequences with the same prefix, which is not copied, and without padding. The backward pass
    recomputes the weights from the scores and the forward pass's log-sum-exp (Dao et al.,
    "FlashAttention", 2022, algorithm 4). Weights and sums are at least float32. Differentiable once
    w.r.t. all five tensors; gradients that are not needed are not computed. The kernels multiply
    whole tiles of tokens, so an infinity in ``v`` also makes neighbors in other classes NaN.

    Args:
        q: queries of N packed tokens with K prompts, ``[K or 1, N, H, d]``; with ``last_only``, of
            each class's last token only, ``[K or 1, C, H, d]``. float32, bfloat16, float16 or
            float64; any strides.
        k, v: keys and values, ``[K or 1, N, H, d]``, dtype of ``q``.
        prefix_k, prefix_v: those of the P shared tokens, ``[K or 1, P, H, d]``; P may be 0.
        cu_seqlens: start of each class's tokens, followed by N: int32 ``[C + 1]``, strictly
            increasing from 0. On a GPU the values are not checked; wrong ones read out of bounds.
        classes: `token_classes` of these ``cu_seqlens``, int32 ``[N]``, which the kernels read;
            computed in each call on a GPU if not given. Its values are not checked.
        last_only: whether ``q`` has only the last token of each class.
        scale: factor of the scores; ``d ** -0.5`` by default.
        impl: ``"triton"`` (GPU kernels, d up to 128), ``"torch"`` (plain implementation, any
            device; reads ``cu_seqlens`` on the host, which synchronizes with a GPU), or ``"auto"``:
            the kernels on a GPU where they can run, else the plain implementation.

    Returns:
        ``[K, N or C, H, d]``, dtype of ``q``.

    Raises:
        TypeError: dtypes differ or are not floating, or ``cu_seqlens`` or ``classes`` is not int32.
        ValueError: shapes or devices do not match, or, on the CPU, ``cu_seqlens`` is invalid.
        RuntimeError: ``impl="triton"`` cannot run.
    """
    check_arguments(q, k, v, prefix_k, prefix_v, cu_seqlens, classes, last_only, scale)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    several = [len(t) for t in (q, k, v, prefix_k, prefix_v) if len(t) != 1]
    prompts = several[0] if several else 1
    # autograd sums the gradient of an expanded tensor; the kernels read it without a copy
    tensors = [t.expand(prompts, -1, -1, -1) for t in (q, k, v, prefix_k, prefix_v)]
    if impl == "triton" and q.shape[-1] > _WIDEST:
        raise ValueError(
            f"q must have a head width of at most {_WIDEST} with impl='triton', got "
            f"{q.shape[-1]}; use impl='auto' or 'torch'"
        )
    chosen = resolve(impl, *tensors)
    # computed once for the forward and the backward pass
    if classes is None and (chosen == "triton" or (chosen == "auto" and q.is_cuda)):
        classes = token_classes(cu_seqlens, k.shape[1])
    given = Attention._make((*tensors, cu_seqlens, classes, last_only, scale))
    return _PrefixAttention.apply(chosen, *given)
