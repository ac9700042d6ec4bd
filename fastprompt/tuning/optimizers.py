"""Optimizer, learning rate, and their state as plain tensors: a run goes on with the same bits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from .config import TunerConfig


def make_optimizer(
    config: TunerConfig, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """The optimizer that the settings name."""
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )


def learning_rate(config: TunerConfig, epoch: int) -> float:
    """``warmup_lr`` for the first epochs, then a cosine over all of them; epochs count from 0."""
    if epoch < config.warmup_epochs:
        return config.warmup_lr
    return config.lr * 0.5 * (1 + math.cos(math.pi * epoch / config.epochs))


def pack(
    prompts: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Prompts, optimizer state and the best prompts so far as one flat mapping."""
    out = {f"prompts/{k}": v for k, v in prompts.state_dict().items()}
    out |= {f"best/{k}": v for k, v in (best or {}).items()}
    for index, state in optimizer.state_dict()["state"].items():
        out |= {f"optimizer/{index}/{k}": v for k, v in state.items() if isinstance(v, Tensor)}
    return out


def unpack(
    tensors: Mapping[str, Tensor], prompts: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor] | None:
    """Put back what `pack` took; returns the best prompts, if it got some."""
    prompts.load_state_dict(_under("prompts/", tensors))
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in _under("optimizer/", tensors).items():
        index, name = key.split("/", 1)
        state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    return _under("best/", tensors) or None


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
