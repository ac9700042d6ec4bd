"""How many classes to compute at once."""

import os

import torch

# tensors of a token's width that a layer keeps for the backward pass: measured 12, with room
_KEPT = 14
_SHARE = 4  # of the memory, one part in so many


def total_memory(device: torch.device) -> int:
    """Bytes that the device has, used or not: the same in every process on a machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def default_class_chunk(
    classes: int, tokens: int, width: int, layers: int, dtype: torch.dtype, memory: int
) -> int:
    """The most classes whose activations take a quarter of the memory, at most all of them.

    Args:
        tokens: of one class, in all its prompts.
        width, layers: of the text tower.
        dtype: of its activations.
        memory: the device's, in bytes.
    """
    each = tokens * width * layers * _KEPT * dtype.itemsize
    return max(1, min(classes, memory // _SHARE // max(each, 1)))
