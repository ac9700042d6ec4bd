"""How much memory a device has."""

import os
from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup/memory.max")


def total_memory(device: torch.device) -> int:
    """Bytes that the device has, used or not: the same in every process on a machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # what a container may use of it
    limit = _CGROUP.read_text().strip() if _CGROUP.exists() else "max"
    return min(physical, int(limit)) if limit.isdigit() else physical
