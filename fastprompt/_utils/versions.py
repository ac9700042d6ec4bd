"""Versions of the packages that a result depends on."""

import platform
from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    out = {"python": platform.python_version()}
    for name in ("fastprompt", "torch", "torchvision", "triton", "open_clip_torch"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = "not installed"
    return out
