"""An optimiser's state as plain tensors, so that a run can go on with the same bits."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def pack(prompts: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Prompts and optimiser state as one flat mapping."""
    out = {f"prompts/{k}": v for k, v in prompts.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        out |= {f"optimiser/{index}/{k}": v for k, v in state.items() if isinstance(v, Tensor)}
    return out


def unpack(
    tensors: Mapping[str, Tensor], prompts: nn.Module, optimiser: torch.optim.Optimizer
) -> None:
    """Put back what `pack` took."""
    saved = {k.removeprefix("prompts/"): v for k, v in tensors.items() if k.startswith("prompts/")}
    prompts.load_state_dict(saved)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimiser/"):
            _, index, name = key.split("/", 2)
            state.setdefault(int(index), {})[name] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
