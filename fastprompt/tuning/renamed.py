"""Names in a saved ``config.json`` that were renamed or removed before 0.1.0 was released."""

from collections.abc import Mapping
from typing import Any

_GONE = ("weigh",)  # removed setting of CAPT; None if no function was given
_KEYS = {"optimiser": "optimizer", "defences": "defenses"}
_VALUES = {
    ("mix", "normalised"): "normalized",
    ("data", "shapes-recoloured"): "shapes-recolored",
    ("sanity", "True"): "full",
    ("precision", "None"): "auto",
    ("sanity", "False"): "quick",
    ("track", "True"): "tensorboard",
    ("track", "False"): None,
}
# defaults of a job; earlier versions searched in the model's own precision
_NEW = {
    **{"search_precision": "own", "confirm": True},
    **{"sanity": "quick", "image_size": None},
    **{"classnames": None, "templates": None, "on_error": None},
}


def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings, or a command's arguments, under their current names."""
    kept = {k: v for k, v in values.items() if k not in _GONE or v is not None}
    return {_KEYS.get(k, k): _VALUES.get((k, str(v)), v) for k, v in kept.items()}


def renamed_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `fastprompt tune` under their current names, with new ones added."""
    return _NEW | renamed(job)


def renamed_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ``config.json`` with the current names in its ``config`` and ``job``."""
    new = dict(config)
    for name, today in (("config", renamed), ("job", renamed_job)):
        if isinstance(config.get(name), Mapping):
            new[name] = today(config[name])
    return new
