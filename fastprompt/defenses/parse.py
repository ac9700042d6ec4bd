"""Parse defenses from names, for the command line."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .._utils.checks import check_text, shown
from .._utils.names import unknown
from .base import Defense
from .resampled import GaussianSmoothing, RandomResizePad
from .rounded import JPEG, BitDepth


@dataclass(frozen=True)
class _Kind:
    make: Callable[..., Defense]
    values: Mapping[str, type[int] | type[float]]
    example: str
    needed: int = 0


_KINDS = {
    "jpeg": _Kind(JPEG, {"quality": int}, "jpeg-75"),
    "bits": _Kind(BitDepth, {"bits": int}, "bits-4"),
    "resize-pad": _Kind(RandomResizePad, {"low": float, "high": float}, "resize-pad-0.9-1"),
    "smooth": _Kind(GaussianSmoothing, {"sigma": float, "kernel_size": int}, "smooth-0.8", 1),
}


def parse_defenses(text: str | Sequence[str]) -> list[Defense]:
    """Create defenses from names such as ``"jpeg-75,bits-4,resize-pad,smooth-0.8"``, in order.

    Names are ``jpeg[-QUALITY]``, ``bits[-BITS]``, ``resize-pad[-LOW[-HIGH]]`` and
    ``smooth-SIGMA[-SIZE]``; omitted values take their defaults.

    Raises:
        ValueError: no name, an unknown name (the message lists similar ones), or an invalid value.
    """
    if not isinstance(text, (str, Sequence)):
        raise TypeError(f"defenses must be a string or a list of names, got {shown(text)}")
    names = [
        check_text(name, "defenses")
        for name in (text.split(",") if isinstance(text, str) else text)
    ]
    if not any(name.strip() for name in names):
        raise ValueError(f"defenses must not be empty, got {text!r}; try 'jpeg-75,bits-4'")
    return [_parse(name.strip()) for name in names]


def _parse(text: str) -> Defense:
    # the name ends before the first value
    name, *values = re.split(r"-(?=[^a-z]|$)", text)
    kind = _KINDS.get(name)
    if kind is None:
        raise unknown("defense", name, _KINDS)
    if not kind.needed <= len(values) <= len(kind.values):
        takes = ", ".join(kind.values)
        raise ValueError(f"defenses: {shown(text)}: {name} takes {takes}, as in {kind.example!r}")
    given = zip(kind.values.items(), values, strict=False)
    try:
        return kind.make(**{key: _number(value, key, make) for (key, make), value in given})
    except ValueError as error:
        raise ValueError(f"defenses: {shown(text)}: {error}") from None


def _number(text: str, name: str, make: type[int] | type[float]) -> float:
    try:
        if "_" in text:  # Python reads 1_0 as 10
            raise ValueError
        return make(text)
    except ValueError:
        kind = "a whole number" if make is int else "a number"
        raise ValueError(f"{name} must be {kind}, got {shown(text)}") from None
