"""The total memory of a device."""

import os
from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup/memory.max")


def total_memory(device: torch.device) -> int:
    """Return the total memory of a device in bytes, used or free; equal in all processes."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # the memory limit of the container
    limit = _CGROUP.read_text().strip() if _CGROUP.exists() else "max"
    return min(physical, int(limit)) if limit.isdigit() else physical
