"""Start values from a run that is done: prompts that go on being tuned."""

import logging
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from .._utils.checks import some
from .._utils.hashing import digest_json
from .._utils.run_folder import RunFolder
from .identity import identity_in, run_facts

log = logging.getLogger(__name__)


def start_values(
    folder: str | Path,
    prompts: nn.Module,
    fingerprint: str,
    classnames: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """The tuned prompts of a run folder, of whichever method, for a module of the same shapes.

    What ``prompts`` has and the run has not, such as refiners, is not among them. Prompts of
    another model are taken, with a warning.

    Args:
        prompts: the module.
        fingerprint: of the model that it is for.
        classnames: of one context a class, whose order counts; None for prompts of all classes.

    Raises:
        FileNotFoundError: no run folder, or tuning has not finished there.
        ValueError: its prompts have other names or shapes, or are for other classes.
    """
    run = RunFolder(folder)
    config = run.read_config()
    identity = digest_json(run_facts(identity_in(config)))
    tuned = run.read_prompts(config["method"], identity)
    if classnames is not None and list(config["classnames"]) != list(classnames):
        raise ValueError(
            f"init_from: each context of {run.path} is for one of the classes "
            f"{some(config['classnames'])}, these are {some(classnames)}"
        )
    if config["clip"]["fingerprint"] != fingerprint:
        log.warning("init_from: %s was tuned on another model's weights", run.path)
    own = prompts.state_dict()
    for name, value in tuned.items():
        if name not in own or own[name].shape != value.shape:
            wanted = list(own[name].shape) if name in own else "nothing of that name"
            raise ValueError(
                f"init_from: {run.path} has {name} {list(value.shape)}, these settings make "
                f"{wanted}: give both the same n_ctx, depth and the like"
            )
    return {name: value.to(own[name]) for name, value in tuned.items()}
