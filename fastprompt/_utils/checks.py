"""Checks of user arguments. Each error names the argument, the valid values and its value."""

import math
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..kernels._check import check_choice as check_choice
from ..kernels._check import check_number as check_number
from ..kernels._check import shown as shown

Fraction: TypeAlias = float | int | str

# Upper limits. Counts fit the 32-bit integers of several libraries; a loop of more than a million
# steps would never end, and is a slip of the keyboard.
MOST = 2**31 - 1
MOST_STEPS = 10**6  # epochs, steps, restarts, queries, samples, targets
MOST_TOKENS = 10**4  # context tokens and layers: memory is allocated for all of them
MOST_WIDTH = 2**16  # widths of tokens and features
MOST_CLASSES = 10**6
MOST_WORKERS = 1024
MOST_THREADS = 4096
MOST_SIDE = 4096  # side of an image in pixels
MOST_WEIGHT = 1e9  # learning rates and weights of losses: far below the largest float32


def parse_fraction(value: Fraction, name: str, *, zero: bool = False) -> float:
    """Parse a distance such as eps, given as a number or as a string such as ``"4/255"``.

    Args:
        value: the distance for pixel values in [0, 1].
        name: the argument's name in error messages.
        zero: whether 0 is allowed.

    Raises:
        TypeError: ``value`` is neither a number nor a string.
        ValueError: ``value`` is no valid number, not finite, negative, above 1, or 0 without
            ``zero``.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError(f'{name} must be a number or a string like "4/255", got {shown(value)}')
    try:
        if isinstance(value, str):
            above, slash, below = value.partition("/")
            number = _plain(above) / _plain(below) if slash else _plain(above)
        else:
            number = float(value)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(
            f'{name} must be a number or a string like "4/255", got {shown(value)}'
        ) from None
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {shown(value)}")
    if number > 1:
        hint = f"; did you mean {number:g}/255?" if number <= 255 else "; pixels are in [0, 1]"
        raise ValueError(f"{name} must be between 0 and 1, got {shown(value)}{hint}")
    if number < 0 or (number == 0 and not zero):
        raise ValueError(f"{name} must be {'at least' if zero else 'above'} 0, got {shown(value)}")
    return number


def _plain(text: str) -> float:
    """Convert a decimal number; Python also reads ``"1_0"`` as 10."""
    if "_" in text:
        raise ValueError
    return float(text)


def check_count(value: int, name: str, *, least: int = 1, most: int = MOST) -> int:
    """Return ``value`` if it is an integer from ``least`` to ``most``, else raise an error."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {shown(value)}")
    if not least <= value <= most:
        limit = f"at least {least}" if value < least else f"at most {most}"
        raise ValueError(f"{name} must be {limit}, got {shown(value)}")
    return value


def check_seed(value: int, name: str = "seed") -> int:
    """Return ``value`` if it is an integer from 0 to 2**32 - 1, else raise an error."""
    if isinstance(value, int) and value >= 2**32:
        raise ValueError(f"{name} must be below 2**32, got {shown(value)}")
    return check_count(value, name, least=0, most=2**32)


def check_flag(value: bool, name: str) -> bool:
    """Return ``value`` if it is True or False, else raise TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")
    return value


def check_text(value: str, name: str) -> str:
    """Return ``value`` if it is a string without control characters and surrogates."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {shown(value)}")
    for character in value:
        # no tokenizer or file takes a surrogate; control characters spoil tables and terminals
        if unicodedata.category(character) in ("Cc", "Cs"):
            kind = "surrogate" if unicodedata.category(character) == "Cs" else "control character"
            raise ValueError(
                f"{name} must not contain the {kind} {character!r}, got {shown(value)}; remove it"
            )
    return value


def check_path(value: str | Path, name: str) -> Path:
    """Return ``value`` as a path; raise unless it is a non-empty string or path without NUL."""
    if not isinstance(value, (str, Path)):
        raise TypeError(f"{name} must be a path, got {shown(value)}")
    if not str(value).strip() or "\0" in str(value):
        raise ValueError(
            f"{name} must be the path of a file or folder, not empty and without NUL, got "
            f"{shown(str(value))}"
        )
    return Path(value)


def check_folder(value: str | Path | None, name: str) -> Path | None:
    """Return the path of a folder, None for None; raise if it, or a folder above it, is a file."""
    if value is None:
        return None
    path = check_path(value, name)
    for folder in (path, *path.parents):
        if folder.exists() and not folder.is_dir():
            raise FileExistsError(f"{name}: {folder} is a file; pass a folder")
    return path


def check_image_size(value: Any) -> int | tuple[int, int]:
    """Return a side or ``(height, width)`` of 16 to 4096 pixels; one number if it is square."""
    if not isinstance(value, Sequence):
        return check_count(value, "image_size", least=16, most=MOST_SIDE)
    if isinstance(value, str) or len(value) != 2:
        raise ValueError(f"image_size must be a number or (height, width), got {shown(value)}")
    height, width = (check_count(v, "image_size", least=16, most=MOST_SIDE) for v in value)
    return height if height == width else (height, width)


def check_numbers(values: Sequence[float] | Tensor | None, name: str) -> list[float] | None:
    """Return a list of finite numbers; None stays None."""
    if values is None:
        return None
    if isinstance(values, Tensor):
        values = values.flatten().tolist()
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a list of numbers, got {shown(values)}")
    return [check_number(value, name) for value in values]


def check_templates(templates: str | Sequence[str], name: str = "templates") -> list[str]:
    """Return the templates as a list; raise unless each contains exactly one ``{}``."""
    if not isinstance(templates, Iterable):
        raise TypeError(f"{name} must be a string or a list of strings, got {shown(templates)}")
    forms = [templates] if isinstance(templates, str) else list(templates)
    for form in forms:
        check_text(form, name)
    if not forms or any(form.count("{}") != 1 for form in forms):
        raise ValueError(
            f"{name} must have exactly one '{{}}' per template, where the class name goes, got "
            f"{forms}"
        )
    return forms


def some(names: Sequence[str]) -> str:
    """Format names for a message; only the first three are shown if there are more."""
    shown = ", ".join(repr(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown}, ... ({len(names)} in all)"


def first_difference(found: Sequence[str], wanted: Sequence[str]) -> str:
    """Say where two lists of names first differ, for a message."""
    for i, (own, other) in enumerate(zip(found, wanted, strict=False)):
        if own != other:
            return f"class {i} is {own!r} instead of {other!r}"
    n, more = min(len(found), len(wanted)), "has" if len(found) > len(wanted) else "lacks"
    name = (found if len(found) > len(wanted) else wanted)[n]
    return f"{len(found)} instead of {len(wanted)}, and the first that it {more} is {name!r}"


def check_images(
    images: Tensor, name: str = "images", *, values: bool = True, channels: int | None = None
) -> None:
    """Raise an error unless ``images`` is float32 or float64 ``[B, C, H, W]`` in [0, 1].

    ``values=False`` skips the check of the values, which synchronizes with the device;
    ``channels`` is the required C, None for any.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(images).__name__}")
    wrong = channels is not None and images.ndim == 4 and images.shape[1] != channels
    if images.ndim != 4 or wrong:
        remedy = f"; load the data with channels={channels}" if wrong else ""
        wanted = f"[B, {channels or 'C'}, H, W]"
        raise ValueError(f"{name} must be {wanted}, got {list(images.shape)}{remedy}")
    if images.dtype not in (torch.float32, torch.float64):
        remedy = "divide by 255" if images.dtype == torch.uint8 else "call .float()"
        raise TypeError(f"{name} must be float32 in [0, 1], got {images.dtype}; {remedy}")
    if values and images.numel():
        low, high = (float(v) for v in torch.aminmax(images.detach()))
        if not (low >= 0.0 and high <= 1.0):
            raise ValueError(
                f"{name} must be in [0, 1], got values from {low:g} to {high:g}; "
                "do not normalize them, the classifier does so"
            )


def check_labels(labels: Tensor, n: int, classes: int | None = None, name: str = "labels") -> int:
    """Check for an integer tensor ``[n]`` in 0..classes-1 and return the largest label."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(labels).__name__}")
    if labels.shape != (n,):
        raise ValueError(f"{name} must be [{n}], one label per image, got {list(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{name} must be an integer tensor, got {labels.dtype}")
    if not n:
        return -1
    low, high = (int(v) for v in torch.aminmax(labels.long()))  # unsigned types lack aminmax
    if low < 0:
        raise ValueError(f"{name} must be at least 0, got {low}")
    if classes is not None:
        check_label_range(high, classes, name)
    return high


def check_label_range(largest: int, classes: int, name: str = "labels") -> None:
    """Raise an error if the largest label is not below the number of classes."""
    if largest >= classes:
        raise ValueError(f"{name} must be in 0..{classes - 1} for {classes} classes, got {largest}")


# each is the name of two classes in ImageNet's usual lists of names
HOMONYMS = frozenset({"missile", "sunglasses"})


def check_classnames(classnames: Iterable[str]) -> list[str]:
    """Return the class names as a list with underscores replaced by spaces.

    Raises:
        TypeError: ``classnames`` is not an iterable of strings, or is a single string.
        ValueError: ``classnames`` is empty, or has a blank or a duplicate name (other than two of
            ImageNet's), or one with a control character or a surrogate.
    """
    if isinstance(classnames, str):
        raise TypeError(f"classnames must be a list of strings, got the string {classnames!r}")
    if not isinstance(classnames, Iterable):
        raise TypeError(f"classnames must be a list of strings, got {shown(classnames)}")
    names = list(classnames)
    if not names:
        raise ValueError("classnames must not be empty")
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"classnames must contain only strings, got {shown(name)}")
        if not name.strip():
            raise ValueError("classnames must not contain a blank name")
        check_text(name, "classnames")
        spoken = name.replace("_", " ")
        if spoken in seen and spoken not in HOMONYMS:
            raise ValueError(f"classnames must be distinct ('_' counts as ' '), got {name!r} twice")
        seen.add(spoken)
    return [name.replace("_", " ") for name in names]
