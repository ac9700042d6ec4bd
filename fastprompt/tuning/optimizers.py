"""Optimizer, learning-rate schedule, and their state as tensors, to resume bit-identically."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .config import TunerConfig


def make_optimizer(
    config: TunerConfig, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """Return the optimizer that the settings select."""
    parameters = list(parameters)
    if config.optimizer == "adamw":
        # one kernel for all parameters; on the CPU, its results would differ from earlier versions'
        fused = True if all(p.is_cuda for p in parameters) else None
        return torch.optim.AdamW(
            parameters, lr=config.lr, weight_decay=config.weight_decay, fused=fused
        )
    return torch.optim.SGD(
        parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )


def learning_rate(config: TunerConfig, epoch: int) -> float:
    """Return ``warmup_lr`` in the W warm-up epochs, then ``lr (1 + cos(pi (epoch - W) / T)) / 2``.

    T is the number of all epochs, and epochs count from 0. This is the scheduler of Dassl, which
    CoOp and its successors use.
    """
    if epoch < config.warmup_epochs:
        return config.warmup_lr
    angle = math.pi * (epoch - config.warmup_epochs) / config.epochs
    return config.lr * 0.5 * (1 + math.cos(angle))


@dataclass
class Best:
    """The best epoch so far on the validation images.

    Attributes:
        prompts: state dict of the prompts; None without validation images.
        score: validation score.
        epoch: the epoch, counted from 1.
    """

    prompts: dict[str, Tensor] | None = None
    score: float = -math.inf
    epoch: int = 0


def pack(prompts: nn.Module, optimizer: torch.optim.Optimizer, best: Best) -> dict[str, Tensor]:
    """Pack prompts, optimizer state and the best epoch so far into one flat mapping."""
    out = {f"prompts/{k}": v for k, v in prompts.state_dict().items()}
    if best.prompts is not None:
        out |= {f"best/{k}": v for k, v in best.prompts.items()}
        out["best_score"] = torch.tensor(best.score, dtype=torch.float64)
        out["best_epoch"] = torch.tensor(best.epoch)
    for index, state in optimizer.state_dict()["state"].items():
        out |= {f"optimizer/{index}/{k}": v for k, v in state.items() if isinstance(v, Tensor)}
    return out


def unpack(
    tensors: Mapping[str, Tensor], prompts: nn.Module, optimizer: torch.optim.Optimizer
) -> Best:
    """Restore the state that `pack` returned; return the best epoch so far.

    Raises:
        ValueError: an earlier version wrote the state, without the score of the best prompts.
    """
    best = Best(_under("best/", tensors) or None)
    if best.prompts is not None:
        if "best_score" not in tensors:
            raise ValueError(
                "resume: state.safetensors has no score of the best prompts, since an earlier "
                "version wrote it; finish the run with that version, or start a new run"
            )
        best.score, best.epoch = float(tensors["best_score"]), int(tensors["best_epoch"])
    prompts.load_state_dict(_under("prompts/", tensors))
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in _under("optimizer/", tensors).items():
        index, name = key.split("/", 1)
        state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    return best


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
