"""Names that are not known, and the nearest that are. Imports nothing that takes time."""

import difflib
from collections.abc import Iterable


def nearest(got: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the nearest known ones, or all of them where they are few."""
    names = sorted(known)
    close = difflib.get_close_matches(got, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(repr(n) for n in close)}?"
    return f"known: {', '.join(names)}" if len(names) <= 20 else f"{len(names)} names are known"


def unknown(kind: str, got: str, known: Iterable[str]) -> ValueError:
    """The error for a name that is not known, with the nearest ones offered."""
    return ValueError(f"unknown {kind} {got!r}: {nearest(got, known)}")
