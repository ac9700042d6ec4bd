"""Validation of the structure of a ``result.json`` before a report is drawn."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NUMBER = (int, float)
ANY = "*"  # every key of an object


@dataclass(frozen=True)
class Maybe:
    """A value that may be missing or null."""

    shape: Any


_ROUTING = [Maybe([NUMBER])]  # classes without images have no weights
_SIZES = Maybe([NUMBER])
_MODEL_PARTS = {
    **{"attack": str, "eps": NUMBER},
    "routing": Maybe({"classes": [str], "clean": _ROUTING, "adversarial": _ROUTING}),
    "refiners": Maybe({"layers": [int], "clean": _SIZES, "adversarial": _SIZES}),
}
_CALIBRATION = {
    **{"temperature": NUMBER, "n": int},
    "rows": [{"attack": str, "eps": NUMBER, "n": int, "before": NUMBER, "after": NUMBER}],
}
_ROW = {
    **{"model": str, "attack": str, "path": str, "interval": [NUMBER], "reasons": [str]},
    **{"eps": NUMBER, "accuracy": NUMBER, "n": int, "correct": int, "trusted": bool},
    **{"flags": Maybe(str), "stalled": Maybe(int), "predictions": Maybe([int])},
    **{key: Maybe(NUMBER) for key in ("forwards", "gradients", "seconds")},
    **{key: Maybe(str) for key in ("precision", "search_precision")},
    "settings": Maybe({"parts": Maybe([dict])}),
    "parts": Maybe([{"attack": str, "standing": int}]),
    "fell_at": Maybe({ANY: int}),
}
_SHAPE = {
    "rows": [_ROW],
    "sanity": [{"model": str, "check": str, "verdict": str, "reason": str}],
    "data": {
        **{"name": Maybe(str), "fingerprint": Maybe(str), "n": Maybe(int), "of": Maybe(int)},
        **{"indices": Maybe([int]), "labels": Maybe([int]), "classnames": Maybe([str])},
        **{"classes": Maybe(str), "unreadable": Maybe(int)},
    },
    "models": {ANY: {"weights": Maybe(str), "defenses": Maybe([str])}},
    "how": dict,
    "diagnostics": {ANY: _MODEL_PARTS},
    "calibration": Maybe({ANY: _CALIBRATION}),
    "versions": dict,
}


def damage(result: Mapping[str, Any]) -> str | None:
    """Return the path of the first invalid value in a result, None if the result is valid."""
    found = _misfit(result, _SHAPE, "")
    if found is not None:
        return found
    for number, row in enumerate(result["rows"]):
        for key, good in _sound(row).items():
            if not good:
                return f"rows[{number}].{key}"
    for model, parts in result["diagnostics"].items():
        for key, lengths in _lengths(parts).items():
            if len(set(lengths)) > 1:
                return f"diagnostics.{model}.{key}"
    return None


def _misfit(value: Any, shape: Any, where: str) -> str | None:
    """Return where ``value`` does not match ``shape``: type(s), ``[item]`` or an object's keys."""
    if isinstance(shape, Maybe):
        return None if value is None else _misfit(value, shape.shape, where)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return where
        inner = [(f"{where}[{i}]", item, shape[0]) for i, item in enumerate(value)]
    elif isinstance(shape, dict):
        if not isinstance(value, Mapping):
            return where
        named = dict.fromkeys(value, shape[ANY]) if ANY in shape else shape
        dot = "." if where else ""
        inner = [(f"{where}{dot}{key}", value.get(key), own) for key, own in named.items()]
    else:
        return None if isinstance(value, shape) else where
    return next((found for at, v, own in inner if (found := _misfit(v, own, at))), None)


def _sound(row: Mapping[str, Any]) -> dict[str, bool]:
    flags = row.get("flags") or ""
    return {
        "n": row["n"] > 0,
        "interval": len(row["interval"]) == 2,
        "flags": len(flags) in (0, row["n"]) and set(flags) <= set("01?"),
        "fell_at": all(at.isdecimal() for at in row.get("fell_at") or {}),
    }


def _lengths(parts: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return, by part, the lengths that must be equal."""
    out = {}
    if routing := parts.get("routing"):
        sides = [routing[side] for side in ("clean", "adversarial")]
        out["routing"] = [len(routing["classes"]), *map(len, sides)]
        out["routing (prompts)"] = [len(w) for side in sides for w in side if w is not None]
    if refiners := parts.get("refiners"):
        # a side that was not measured is omitted
        every = [refiners.get(k) for k in ("layers", "clean", "adversarial")]
        out["refiners"] = [len(values) for values in every if values]
    return out
