"""Names in a saved ``config.json`` that were renamed or removed before 0.1.0 was released."""

from collections.abc import Mapping
from typing import Any

_GONE = ("weigh",)  # removed setting of CAPT; None if no function was given
_KEYS = {"optimiser": "optimizer", "defences": "defenses"}
_VALUES = {
    ("mix", "normalised"): "normalized",
    ("data", "shapes-recoloured"): "shapes-recolored",
    ("sanity", "True"): "full",
    ("sanity", "False"): "quick",
}
_NEW = {"sanity": "quick"}  # defaults of a job


def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings, or a command's arguments, under their current names."""
    kept = {k: v for k, v in values.items() if k not in _GONE or v is not None}
    return {_KEYS.get(k, k): _VALUES.get((k, str(v)), v) for k, v in kept.items()}


def renamed_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ``config.json`` with the current names in its ``config`` and ``job``."""
    parts = (name for name in ("config", "job") if isinstance(config.get(name), Mapping))
    new = {name: renamed(config[name]) for name in parts}
    if "job" in new:
        new["job"] = _NEW | new["job"]
    return {**config, **new}
