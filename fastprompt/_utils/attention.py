"""The attention function of the towers, and context managers that select its kernel."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def plain_attention() -> Iterator[None]:
    """Disable the inference fast path of `nn.MultiheadAttention`.

    The outputs of the fast path differ by about 1e-5 from those computed with gradients, so an
    attack and the evaluation of its images would use two different models. `torch.compile` cannot
    trace the switch: also enter this context around a compiled function that uses it.
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
    """Select the unfused kernel on the CPU; its backward is faster at the length of a prompt."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute softmax attention, tokens before heads: ``[..., T, H, d]``; additive ``mask``.

    On the CPU, it is written out: there PyTorch's unfused kernel converts bfloat16 to float32 and
    passes over the scores more often, and the backward of its fused one is slow for few tokens.
    """
    q, k, v = (x.transpose(-3, -2) for x in (q, k, v))
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(-3, -2)
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if mask is not None:
        scores = scores + mask
    return (scores.softmax(dim=-1) @ v).transpose(-3, -2)


def causal_mask(n: int, like: Tensor) -> Tensor:
    """Return an additive causal mask ``[n, n]`` with the dtype and device of ``like``."""
    return torch.full((n, n), float("-inf"), dtype=like.dtype, device=like.device).triu_(1)
