"""Attention as the towers call it, and the switches that keep its paths apart."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def plain_attention() -> Iterator[None]:
    """`nn.MultiheadAttention` without its gradient-free shortcut.

    The shortcut's outputs differ by about 1e-5 from those under gradients, so that an attack and
    the judgment on its images would see two models. `torch.compile` can't trace the switch: who
    compiles a function that comes by here enters this around the compiled one, too.
    """
    if torch.compiler.is_compiling():
        yield
        return
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def attention_kernel(device: torch.device) -> AbstractContextManager[None]:
    """On the CPU the unfused kernel: at the length of a prompt its backward is the faster one."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention with tokens before heads, ``[..., T, H, d]``; ``mask`` is additive."""
    out = F.scaled_dot_product_attention(
        q.transpose(-3, -2), k.transpose(-3, -2), v.transpose(-3, -2), attn_mask=mask
    )
    return out.transpose(-3, -2)


def causal_mask(n: int, like: Tensor) -> Tensor:
    """Additive ``[n, n]``: a token sees itself and what stands before it."""
    return torch.full((n, n), float("-inf"), dtype=like.dtype, device=like.device).triu_(1)
