"""Memory format in which the kernels read and write images."""

import torch
from torch import Tensor


def output_format(x_adv: Tensor) -> torch.memory_format:
    """Return channels-last for channels-last images, otherwise the contiguous format."""
    if x_adv.ndim != 4 or x_adv.is_contiguous():
        return torch.contiguous_format
    last = x_adv.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format
