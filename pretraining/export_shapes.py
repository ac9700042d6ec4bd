"""Exports the trained models to the package: fp16 safetensors and a JSON description.

python -m pretraining.export_shapes --help
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fastprompt._utils.files import read_json
from fastprompt.clip.frozen import FrozenCLIP
from fastprompt.data.builtin import WORLDS, draw_split
from fastprompt.data.dataset import ImageTensors
from fastprompt.data.shapes import Scenes, render
from fastprompt.data.splits import Form
from fastprompt.evaluation import evaluate

from .exporting import Kind, command_line, export_pair
from .pretrain_shapes import CONFIG, MEAN, STD, class_labels, load_stage

HELD_OUT = 999_999_999  # far from the seeds that training uses
_EPS = {"tiny-shapes": ["4/255"], "tiny-shapes-robust": ["1/255", "2/255", "4/255"]}


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


def export(
    out: Path = Path("pretrain-shapes"),
    assets: Path = Path("fastprompt/assets"),
    images: int = 400,
) -> None:
    """Measure the models of the stages in ``out`` and write both to ``assets``."""
    export_pair(
        Kind("tiny-shapes", CONFIG, MEAN, STD, {}),
        load_stage(out, "plain"),
        load_stage(out, "robust"),
        [
            command_line("pretrain_shapes", stage, read_json(out / f"{stage}.json"))
            for stage in ("plain", "robust")
        ],
        lambda name, clip: measure(clip, _EPS[name], images),
        assets,
    )


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(export)
