"""Argument checks shared by the ops; each error names the argument, its limits and its value.

Each check takes the value first, then its name. The checks read types, shapes, dtypes and devices,
never a tensor's values, and build messages only when they raise, so that `torch.compile` can trace
them with symbolic sizes.
"""

import numbers
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_INF = float("inf")
_NUMBERS = (int, float, torch.SymInt, torch.SymFloat, numbers.Real)


def check_type(value: object, name: str, kind: type, takes: str, remedy: str = "") -> None:
    """Raise TypeError unless ``value`` is a ``kind``, which ``takes`` describes in the message."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {takes}, got {type(value).__name__}{_then(remedy)}")


def check_tensor(value: object, name: str, remedy: str = "") -> None:
    check_type(value, name, Tensor, "a tensor", remedy)


def check_choice(value: object, name: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        named = " or ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be {named}, got {shown(value)}")


def shown(value: object, most: int = 100) -> str:
    """Return ``repr(value)`` for a message, cut to ``most`` characters."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4300 digits
        return f"a {type(value).__name__} with too many digits to show"
    return text if len(text) <= most else f"{text[: most - 3]}..."


# numbers


def check_number(
    value: object,
    name: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    finite: bool = True,
    samples: int | None = None,
    remedy: str = "",
) -> float:
    """Check that ``value`` is a number within the limits and return it as a float.

    Args:
        value: the argument's value; bools and tensors are rejected.
        name: the argument's name.
        low, high: inclusive lower and upper bound.
        above: exclusive lower bound.
        finite: whether to reject infinities. NaN is always rejected.
        samples: if given, the message says that a tensor of this length is accepted too.
        remedy: for the message: why a tensor is rejected, and what to do instead.
    """
    if isinstance(value, bool) or not isinstance(value, _NUMBERS):
        _refuse_type(value, name, samples, remedy)
    number: Any = value
    within = (
        number == number  # False for NaN
        and (low is None or number >= low)
        and (high is None or number <= high)
        and (above is None or number > above)
    )
    if not within:
        limits = _limits(low, high, above, finite)
        raise ValueError(f"{name} must be {limits}, got {shown(number)}")
    if finite and not -_INF < number < _INF:
        raise ValueError(f"{name} must be finite, got {number}")
    try:
        return float(number)
    except OverflowError:  # an integer above 1e308
        raise ValueError(f"{name} must be finite, got {shown(number)}") from None


def _limits(low: float | None, high: float | None, above: float | None, finite: bool) -> str:
    if low is not None and high is not None:
        return f"between {low:g} and {high:g}"
    if low is not None:
        return f"at least {low:g}"
    if above is not None:
        return f"above {above:g}" + ("" if high is None else f" and at most {high:g}")
    if high is not None:
        return f"at most {high:g}"
    return "finite" if finite else "a number"


def _refuse_type(value: object, name: str, samples: int | None, remedy: str) -> NoReturn:
    takes = "a number" if samples is None else f"a number or a tensor of shape [{samples}]"
    if isinstance(value, str):
        raise TypeError(
            f"{name} must be {takes}, got {shown(value)}; omit the quotes, as in eps=4/255"
        )
    if isinstance(value, Tensor):
        raise TypeError(f"{name} must be {takes}, got a tensor{_then(remedy)}")
    raise TypeError(f"{name} must be {takes}, got {type(value).__name__}")


def check_per_sample(
    value: object,
    name: str,
    anchor: Tensor,
    anchor_name: str,
    *,
    low: float | None = None,
    high: float | None = None,
    finite: bool = True,
) -> None:
    """Check for a number within the limits or a floating tensor with one value per sample."""
    if not isinstance(value, Tensor):
        check_number(value, name, low=low, high=high, finite=finite, samples=anchor.shape[0])
        return
    if value.shape != anchor.shape[:1]:
        wanted = f"a number or a tensor of shape [{anchor.shape[0]}]"
        raise ValueError(f"{name} must be {wanted}, got shape {list(value.shape)}")
    check_floating(value, name)
    check_device(value, name, anchor, anchor_name)


def check_box(lo: object, hi: object) -> None:
    """Check the bounds of the pixel values, which may be infinite."""
    low = check_number(lo, "lo", finite=False)
    if check_number(hi, "hi", finite=False) < low:
        raise ValueError(f"lo must be at most hi, got lo={lo} and hi={hi}")


# tensors


def check_pixels(images: Tensor, name: str) -> None:
    """Check for a float32 or float64 tensor of shape ``[B, ...]``."""
    check_tensor(images, name)
    if images.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"{name} must be float32, got {images.dtype}; call .float(), since lower precision can "
            "leave the eps-ball"
        )
    if images.ndim < 1:
        raise ValueError(f"{name} must have shape [B, ...], got a 0-dimensional tensor")


def check_floating(tensor: Tensor, name: str) -> None:
    if tensor.dtype not in FLOATS:
        raise TypeError(
            f"{name} must be float32, float16, bfloat16 or float64, got {tensor.dtype}; cast it"
        )


def check_dtype(tensor: Tensor, name: str, anchor: Tensor, anchor_name: str) -> None:
    if tensor.dtype != anchor.dtype:
        raise TypeError(
            f"{name} must have {_of(anchor_name)} dtype {anchor.dtype}, got {tensor.dtype}; cast it"
        )


def check_shape(tensor: Tensor, name: str, anchor: Tensor, anchor_name: str) -> None:
    if tensor.shape != anchor.shape:
        raise ValueError(
            f"{name} must have {_of(anchor_name)} shape {list(anchor.shape)}, "
            f"got {list(tensor.shape)}"
        )


def check_device(tensor: Tensor, name: str, anchor: Tensor, anchor_name: str) -> None:
    if tensor.device != anchor.device:
        raise ValueError(
            f"{name} must be on {_of(anchor_name)} device {anchor.device}, got {tensor.device}; "
            "move it there"
        )


def check_writable(tensor: Tensor, name: str) -> None:
    """Check that ``tensor`` requires no gradient, since autograd does not track the write."""
    if tensor.requires_grad:
        raise ValueError(
            f"{name} is modified in place, so it must not require a gradient; detach it"
        )


def _of(name: str) -> str:
    return f"{name}'" if name.endswith("s") else f"{name}'s"


def _then(remedy: str) -> str:
    return f"; {remedy}" if remedy else ""
