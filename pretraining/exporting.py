"""Writing of a plain and a robust model to the package: fp16 safetensors and JSON model cards."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from safetensors.torch import load, save
from torch import Tensor

from fastprompt._utils.files import write_bytes, write_json
from fastprompt._utils.versions import versions
from fastprompt.clip.frozen import FrozenCLIP
from fastprompt.clip.load import load_clip


@dataclass(frozen=True)
class Kind:
    """What a plain and its robust model share.

    Attributes:
        name: that of the plain model.
        config, mean, std: of open_clip.
        facts: other entries of the cards.
    """

    name: str
    config: Mapping[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    facts: Mapping[str, Any]


def command_line(module: str, stage: str, settings: Mapping[str, Any]) -> str:
    """Return the command that ran a stage with these settings."""
    given = (f"--{k} {v!r}" for k, v in settings.items())
    return " ".join(["python -m", f"pretraining.{module}", stage, *given])


def export_pair(
    kind: Kind,
    plain: Any,
    robust: Any,
    commands: Sequence[str],
    measure: Callable[[str, FrozenCLIP], dict[str, Any]],
    assets: Path,
) -> None:
    """Write both models; the robust one replaces only the image encoder.

    Args:
        commands: that which trained the plain model, and that which made it robust.
        measure: returns the accuracies of a model, given its name and the model with the weights
            as they are stored.
    """
    tower = {f"visual.{k}": v for k, v in robust.visual.state_dict().items()}
    files = {
        f"{kind.name}.safetensors": _half(plain.state_dict()),
        f"{kind.name}-robust.image.safetensors": _half(tower),
    }
    for name, count in ((kind.name, 1), (f"{kind.name}-robust", 2)):
        weights = list(files)[:count]
        card = {
            "name": name,
            "config": dict(kind.config),
            "mean": kind.mean,
            "std": kind.std,
            "weights": weights,
            "sha256": {f: hashlib.sha256(files[f]).hexdigest() for f in weights},
            "training": list(commands[:count]),
            **kind.facts,
            "versions": versions(),
            "zero-shot accuracy": measure(name, _as_stored(kind, files, weights)),
        }
        # measured first, so that no card is incomplete
        for file in weights:
            write_bytes(assets / file, files[file])
        write_json(assets / f"{name}.json", card)


def _half(state: Mapping[str, Tensor]) -> bytes:
    return save({k: v.half().contiguous() for k, v in sorted(state.items())})


def _as_stored(kind: Kind, files: Mapping[str, bytes], weights: Sequence[str]) -> FrozenCLIP:
    """Return the model as the package loads it: with weights rounded to fp16."""
    state = {k: v.float() for file in weights for k, v in load(files[file]).items()}
    model = open_clip.CLIP(**kind.config)
    model.load_state_dict(state)
    return load_clip(model, mean=kind.mean, std=kind.std)
