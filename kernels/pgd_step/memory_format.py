"""In which order of memory images are read and written."""

import torch
from torch import Tensor


def output_format(x_adv: Tensor) -> torch.memory_format:
    """Channels-last stays so; anything else is written as ``[B, C, H, W]`` stands."""
    if x_adv.ndim != 4 or x_adv.is_contiguous():
        return torch.contiguous_format
    last = x_adv.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format
