"""Start values from a run that is done: prompts that go on being tuned."""

from pathlib import Path

from torch import Tensor, nn

from ..runs import RunFolder
from .identity import digest_of, identity_in, run_facts


def start_values(folder: str | Path, prompts: nn.Module) -> dict[str, Tensor]:
    """The tuned prompts of a run folder, of whichever method, for a module of the same shapes.

    What ``prompts`` has and the run has not, such as refiners, keeps its own start values.

    Raises:
        FileNotFoundError: no run folder, or tuning has not finished there.
        ValueError: its prompts have other names or shapes.
    """
    run = RunFolder(folder)
    config = run.read_config()
    identity = digest_of(run_facts(identity_in(config)))
    tuned = run.read_prompts(config["method"], identity)
    own = prompts.state_dict()
    for name, value in tuned.items():
        if name not in own or own[name].shape != value.shape:
            wanted = list(own[name].shape) if name in own else "nothing of that name"
            raise ValueError(
                f"init_from: {run.path} has {name} {list(value.shape)}, these settings make "
                f"{wanted}: give both the same n_ctx, depth and the like"
            )
    return {**own, **{k: v.to(own[k]) for k, v in tuned.items()}}
