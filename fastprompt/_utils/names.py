"""Errors for unknown names, with suggestions. This module imports nothing slow."""

import difflib
from collections.abc import Iterable


def nearest(got: str, known: Iterable[str]) -> str:
    """Return a hint for an unknown name: the nearest known names, or all if there are few."""
    names = sorted(known)
    close = difflib.get_close_matches(got, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(repr(n) for n in close)}?"
    return f"known: {', '.join(names)}" if len(names) <= 20 else f"{len(names)} names are known"


def unknown(kind: str, got: str, known: Iterable[str]) -> ValueError:
    """Return a ValueError for an unknown name that suggests the nearest known names."""
    shown = got if len(got) <= 100 else f"{got[:97]}..."
    return ValueError(f"unknown {kind} {shown!r}: {nearest(shown, known)}")
