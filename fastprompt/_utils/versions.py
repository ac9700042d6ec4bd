"""Versions of the packages that affect a result."""

import platform
from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect a result."""
    out = {"python": platform.python_version()}
    for name in ("fastprompt", "torch", "torchvision", "triton", "open_clip_torch"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = "not installed"
    return out
