"""Exports the trained models to the package: fp16 safetensors and a JSON description.

python -m pretraining.export_shapes --help
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import load, save
from torch import Tensor

from fastprompt._utils.files import read_json, write_bytes, write_json
from fastprompt._utils.versions import versions
from fastprompt.clip.frozen import FrozenCLIP
from fastprompt.clip.load import load_clip
from fastprompt.data.builtin import WORLDS, draw_split
from fastprompt.data.dataset import ImageTensors
from fastprompt.data.shapes import Scenes, render
from fastprompt.data.splits import Form
from fastprompt.evaluation import evaluate

from .pretrain_shapes import CONFIG, MEAN, STD, class_labels, load_stage

HELD_OUT = 999_999_999  # far from the seeds that training uses
_COMMAND = "python -m pretraining.pretrain_shapes"


def own_world(n: int = 2000, seed: int = HELD_OUT) -> ImageTensors:
    """Return unseen images of the pre-training scenes, labeled as the 80 classes of ``shapes``."""
    scenes = Scenes.random(n, torch.Generator().manual_seed(seed))
    return ImageTensors(render(scenes, seed=seed), class_labels(scenes)["pair"])


def measure(clip: FrozenCLIP, eps: Sequence[str], images: int, seed: int = 0) -> dict[str, Any]:
    """Measure zero-shot accuracy: clean on all data sets, PGD-20 on ``images`` images of three."""
    shapes = WORLDS["shapes"]
    judge = clip.zero_shot(shapes.classnames, shapes.templates)
    own = evaluate(judge, own_world(), ["clean"], batch=250, progress=False)
    out: dict[str, Any] = {"pre-training world": {"clean": own.accuracy("model", "clean")}}
    for name, world in WORLDS.items():
        test = draw_split(name, "test", Form(clip.image_size))
        judge = clip.zero_shot(world.classnames, world.templates)
        rows = evaluate(judge, test, ["clean"], batch=250, progress=False).rows
        if name in ("shapes", "patterns", "counts"):
            rows += evaluate(
                judge, test, ["pgd-20"], eps, limit=images, seed=seed, progress=False
            ).rows
        out[name] = {
            "clean" if r["attack"] == "clean" else f"pgd-20 at {e}": round(r["accuracy"], 4)
            for r, e in zip(rows, ["", *eps], strict=False)
        }
    return out


def _half(state: dict[str, Tensor]) -> bytes:
    return save({k: v.half().contiguous() for k, v in sorted(state.items())})


def _command(stage: str, settings: dict[str, Any]) -> str:
    return " ".join([_COMMAND, stage, *(f"--{k} {v!r}" for k, v in settings.items())])


def export(
    out: Path = Path("pretrain-shapes"),
    assets: Path = Path("fastprompt/assets"),
    images: int = 400,
) -> None:
    """Measure the models of the stages in ``out`` and write both to ``assets``."""
    plain, robust = load_stage(out, "plain"), load_stage(out, "robust")
    commands = [_command(s, read_json(out / f"{s}.json")) for s in ("plain", "robust")]
    tower = {f"visual.{k}": v for k, v in robust.visual.state_dict().items()}
    files = {
        "tiny-shapes.safetensors": _half(plain.state_dict()),
        "tiny-shapes-robust.image.safetensors": _half(tower),
    }
    for name, count in (("tiny-shapes", 1), ("tiny-shapes-robust", 2)):
        weights = list(files)[:count]
        eps = ["4/255"] if count == 1 else ["1/255", "2/255", "4/255"]
        card = {
            "name": name,
            "config": CONFIG,
            "mean": MEAN,
            "std": STD,
            "weights": weights,
            "sha256": {f: hashlib.sha256(files[f]).hexdigest() for f in weights},
            "training": commands[:count],
            "versions": versions(),
            "zero-shot accuracy": measure(_as_stored(files, weights), eps, images),
        }
        # measured first, so that no card is incomplete
        for file in weights:
            write_bytes(assets / file, files[file])
        write_json(assets / f"{name}.json", card)


def _as_stored(files: dict[str, bytes], weights: Sequence[str]) -> FrozenCLIP:
    """Return the model as the package loads it: with weights rounded to fp16."""
    state = {k: v.float() for file in weights for k, v in load(files[file]).items()}
    model = open_clip.CLIP(**CONFIG)
    model.load_state_dict(state)
    return load_clip(model, mean=MEAN, std=STD)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(export)
