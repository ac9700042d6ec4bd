"""The total memory of a device."""

import os
from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup/memory.max")
_ASSUMED = 8 * 2**30  # on systems that do not report their memory here, such as Windows


def total_memory(device: torch.device) -> int:
    """Return the total memory of a device in bytes, used or free; equal in all processes.

    Where the system does not report the memory of the CPU, as on Windows, 8 GiB are assumed.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no `sysconf`, or not these names
        physical = _ASSUMED
    # the memory limit of the container
    limit = _CGROUP.read_text("utf-8").strip() if _CGROUP.exists() else "max"
    return min(physical, int(limit)) if limit.isdigit() else physical
