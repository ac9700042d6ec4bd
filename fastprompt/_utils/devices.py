"""Checks of device names, before torch allocates or starts anything on them."""

import torch

from .checks import shown

_TYPES = ("cpu", "cuda", "mps")


def usable_device(device: str | torch.device, name: str = "device") -> torch.device:
    """Return the device if models can run on it.

    Args:
        device: ``"cpu"``, ``"cuda"``, ``"cuda:N"`` (also AMD GPUs) or ``"mps"``.
        name: the argument's name in error messages.

    Raises:
        TypeError: ``device`` is neither a string nor a `torch.device`.
        ValueError: no such device is supported or available.
    """
    if not isinstance(device, (str, torch.device)):
        raise TypeError(f"{name} must be a name such as cpu or cuda:0, got {shown(device)}")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ValueError(
            f"{name} must be a name such as cpu or cuda:0, got {shown(device)}"
        ) from None
    text = str(device)
    if found.type not in _TYPES:
        raise ValueError(f"{name} must be cpu, cuda, cuda:N or mps, got {text!r}")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{name}: {text!r} needs a GPU, but none is available; use cpu")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ValueError(
            f"{name}: {text!r} does not exist, the number of GPUs is {count}; use cuda"
        )
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"{name}: {text!r} needs an Apple GPU, but none is available; use cpu")
    return found
