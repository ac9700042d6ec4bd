"""Initialization of prompts from a finished run."""

import logging
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from .._utils.checks import first_difference
from .._utils.hashing import digest_json
from .._utils.run_folder import RunFolder
from ..towers.template import DEFAULT
from .identity import identity_in, run_facts

log = logging.getLogger(__name__)


def check_template(folder: str | Path, template: str) -> None:
    """Warn if a run's prompts were tuned in another template, whose words differ."""
    tuned = RunFolder(folder).read_config()["config"].get("template", DEFAULT)
    if tuned != template:
        log.warning(
            "init_from: %s was tuned with template=%r, the new run has %r; unless you meant this, "
            "pass the template of the run",
            *(folder, tuned, template),
        )


def start_values(
    folder: str | Path,
    prompts: nn.Module,
    fingerprint: str,
    classnames: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """Read a run's tuned prompts, of any method, as initial values of a module of the same shapes.

    The result lacks the entries of ``prompts`` that the run does not have, such as refiners.
    Prompts tuned on another model are accepted with a warning.

    Args:
        prompts: module to initialize.
        fingerprint: fingerprint of the model that ``prompts`` are for.
        classnames: class names, in order, of class-specific contexts; None for shared contexts.

    Raises:
        FileNotFoundError: ``folder`` is not a run folder, or its tuning has not finished.
        ValueError: the run's prompts have other names or shapes, or belong to other classes.
    """
    run = RunFolder(folder)
    config = run.read_config()
    identity = digest_json(run_facts(identity_in(config)))
    tuned = run.read_prompts(config["method"], identity)
    if classnames is not None and list(config["classnames"]) != list(classnames):
        raise ValueError(
            f"init_from: class-specific contexts need the classes of {run.path} in the same order: "
            f"{first_difference(classnames, config['classnames'])}"
        )
    if config["clip"]["fingerprint"] != fingerprint:
        log.warning(
            "init_from: %s was tuned on a model with other weights; unless you meant this, pass a "
            "run of the same model",
            run.path,
        )
    own = prompts.state_dict()
    for name, value in tuned.items():
        if name not in own or own[name].shape != value.shape:
            wanted = list(own[name].shape) if name in own else "nothing of that name"
            raise ValueError(
                f"init_from: {run.path} has {name} {list(value.shape)}, the new run has {wanted}: "
                "use the same n_ctx, depth and other settings of the prompts"
            )
    return {name: value.to(own[name]) for name, value in tuned.items()}
