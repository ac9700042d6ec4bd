"""Each packed token's class, which the kernels read instead of searching for it."""

import torch
from torch import Tensor


def token_classes(cu_seqlens: Tensor, n_tokens: int) -> Tensor:
    """Return the class of each of ``n_tokens`` packed tokens, int32 ``[N]``, on any device.

    Args:
        cu_seqlens: start of each class's tokens, followed by N: int32 ``[C + 1]``.
    """
    tokens = torch.arange(n_tokens, dtype=torch.int32, device=cu_seqlens.device)
    # the number of classes that end at or before the token
    return torch.searchsorted(cu_seqlens[1:].contiguous(), tokens, right=True, out_int32=True)
