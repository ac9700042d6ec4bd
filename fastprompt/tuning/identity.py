"""What says which run this is, and how to make it again from its ``config.json``."""

import logging
from collections.abc import Mapping
from typing import Any

from .._utils.dtypes import check_precision
from ..clip.frozen import FrozenCLIP
from ..clip.load import load_clip

log = logging.getLogger(__name__)

# settings of how a run is executed: filled in for the machine, kept in config.json
EXECUTION = ("compile", "class_chunk")


def identity_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's identity, from its ``config.json``."""
    return {key: config[key] for key in ("method", "config", "classnames", "clip")}


def run_facts(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity without what changes rounding alone: how the run is executed."""
    config = {k: v for k, v in identity["config"].items() if k not in EXECUTION}
    return {**identity, "config": config}


def runs_here(precision: str | None, clip: FrozenCLIP) -> bool:
    """Whether the model's device has the precision that a run was tuned in."""
    try:
        return precision is None or check_precision(precision, clip.device) is not None
    except ValueError:
        log.warning("%s was tuned with, %s has none: its own is taken", precision, clip.device)
        return False


def clip_of(config: Mapping[str, Any]) -> FrozenCLIP:
    """The model of a run's ``config.json``, loaded again."""
    source = config["clip"]["source"]
    if source is None:
        raise ValueError(
            f"clip: the run was made with a model object ({config['clip']['name']}): hand it in"
        )
    arguments = dict(source)
    return load_clip(arguments.pop("model"), **arguments)
