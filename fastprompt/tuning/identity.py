"""The identity of a run, and how to restore its model from its ``config.json``."""

import logging
from collections.abc import Mapping
from typing import Any

from .._utils.dtypes import AUTO, check_precision
from ..clip.frozen import FrozenCLIP
from ..clip.load import load_clip

log = logging.getLogger(__name__)

# arguments of `load_clip`
_SOURCE = ("model", "pretrained", "image_weights", "image_size", "mean", "std", "source")
# execution settings: their defaults depend on the machine; config.json stores their values
EXECUTION = ("compile", "class_chunk", "class_shards")


def identity_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's identity from the content of its ``config.json``."""
    return {key: config[key] for key in ("method", "config", "classnames", "clip")}


def run_facts(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return an identity without the execution settings, which change only rounding."""
    config = {k: v for k, v in identity["config"].items() if k not in EXECUTION}
    return {**identity, "config": config}


def runs_here(precision: str, clip: FrozenCLIP) -> bool:
    """Return whether the model's device supports the precision that a run was tuned in."""
    try:
        return precision == AUTO or check_precision(precision, clip.device) is not None
    except ValueError:
        log.warning(
            "the run was tuned in %s, which %s does not support: using precision='auto'",
            precision,
            clip.device,
        )
        return False


def clip_of(config: Mapping[str, Any], device: str | None = None) -> FrozenCLIP:
    """Load the model that a run's ``config.json`` names, by default on the CPU.

    Raises:
        ValueError, TypeError, FileNotFoundError: as `load_clip`; also if ``config.json`` does not
            name a model.
    """
    source = config["clip"]["source"]
    if source is None:
        raise ValueError(
            f"clip: the run was tuned on a model object ({config['clip']['name']}): pass the same "
            "model as clip"
        )
    unknown = sorted(set(source) - set(_SOURCE))
    if unknown or not isinstance(source.get("model"), str):
        what = f"an unknown argument {unknown[0]!r}" if unknown else "no model"
        raise ValueError(
            f"clip: config.json has {what} in clip.source; it is damaged: restore it from a copy, "
            "or pass the model as clip"
        )
    try:
        return load_clip(**source, device=device)
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise type(error)(f"clip: the model of config.json: {error}") from None
