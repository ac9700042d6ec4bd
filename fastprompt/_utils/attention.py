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
    """Compute softmax attention, tokens before heads: ``[..., T, H, d]``; additive ``mask``."""
    out = F.scaled_dot_product_attention(
        q.transpose(-3, -2), k.transpose(-3, -2), v.transpose(-3, -2), attn_mask=mask
    )
    return out.transpose(-3, -2)


def causal_mask(n: int, like: Tensor) -> Tensor:
    """Return an additive causal mask ``[n, n]`` with the dtype and device of ``like``."""
    return torch.full((n, n), float("-inf"), dtype=like.dtype, device=like.device).triu_(1)
