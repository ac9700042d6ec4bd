"""Exports the trained models of photographs to the package, with their model cards.

    python -m pretraining.export_photos --help

The training logs, with the accuracies that were measured meanwhile, are written as well.
"""

import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastprompt._utils.files import read_json, write_bytes, write_json
from fastprompt.clip.frozen import FrozenCLIP
from fastprompt.data import ImageTensors, load_data
from fastprompt.data.dataset import ImageDataset
from fastprompt.evaluation import evaluate

from .exporting import Kind, command_line, export_pair
from .photo_data import SEEN, Pictures, read_photos64
from .photo_model import CONFIG, MEAN, STD, TEMPLATE
from .photo_words import PHOTOS64
from .pretrain_photos import load_stage

LOGS = Path(__file__).with_name("photos_logs.json")
_EPS, _ATTACK = "1/255", "pgd-100"
LICENSE = (
    "The weights derive from pictures of Tiny-ImageNet, which are under ImageNet's terms of "
    "access: non-commercial research and educational use. Use the weights for research only. The "
    "rest of the training pictures is of Caltech 101 (Li, Andreeto, Ranzato, Perona, CaltechDATA "
    "2022, doi:10.22002/D1.20086), CC BY 4.0."
)
Sets = Mapping[str, tuple[ImageDataset, list[str]]]  # test images and class names


def seen() -> list[str]:
    """Return the sentences of the model cards on what the models have seen."""
    caltech = len(SEEN.read_text("utf-8").splitlines())
    return [
        f"photos64: 64 pixels, {len(PHOTOS64)} classes of Tiny-ImageNet, 392 training pictures of "
        "each; 8 more of each measured the progress. The test pictures were not seen.",
        f"Caltech101: {caltech:,} of the 4,128 training pictures of CoOp's split, listed in "
        "pretraining/caltech_seen.txt; 500 validation pictures measured the progress. The test "
        "pictures and those of the data set photos were not seen.",
        "All class names of both sets: zero-shot classification here is of classes that were seen "
        "in the pre-training.",
    ]


def judged_sets(data: Path, folder: Path) -> dict[str, tuple[ImageDataset, list[str]]]:
    """Return the test images; ``folder`` is one in which Caltech101 can be unpacked."""
    with zipfile.ZipFile(data / "caltech-101.zip") as archive:
        archive.extractall(folder)
    size = CONFIG["vision_cfg"]["image_size"]
    caltech = load_data("coop:Caltech101", root=folder, image_size=size)
    shipped = load_data("photos", image_size=size)
    return {
        "photos64": (_tensors(read_photos64(data, "test")), list(PHOTOS64)),
        "caltech101": (caltech.test, caltech.classnames),
        "photos": (shipped.test, shipped.classnames),
    }


def _tensors(pictures: Pictures) -> ImageTensors:
    return ImageTensors(pictures.pixels, pictures.labels)


def measure(clip: FrozenCLIP, sets: Sets, images: int) -> dict[str, dict[str, float]]:
    """Measure zero-shot accuracy on the test sets: clean, and PGD-100 on ``images`` images."""
    out = {}
    for name, (test, classnames) in sets.items():
        judge = clip.zero_shot(classnames, [TEMPLATE])
        clean = evaluate(judge, test, ["clean"], batch=250, progress=False)
        robust = evaluate(judge, test, [_ATTACK], _EPS, limit=images, progress=False)
        out[name] = {
            "clean": round(clean.accuracy("model", "clean"), 4),
            f"{_ATTACK} at {_EPS}": round(robust.accuracy("model", _ATTACK, _EPS), 4),
        }
    return out


def export(
    out: Path,
    data: Path = Path("../shared/data"),
    assets: Path = Path("fastprompt/assets"),
    logs: Path = LOGS,
    images: int = 200,
) -> None:
    """Measure the models of the stages in ``out`` and write both to ``assets``, the logs apart."""
    runs: dict[str, Any] = {s: read_json(out / f"{s}.json") for s in ("plain", "robust")}
    commands = [command_line("pretrain_photos", s, _options(runs[s])) for s in runs]
    facts = {"seen": seen(), "license": LICENSE}
    with tempfile.TemporaryDirectory() as folder:
        sets = judged_sets(data, Path(folder))
        export_pair(
            Kind("tiny-photos", CONFIG, MEAN, STD, facts),
            load_stage(out, "plain"),
            load_stage(out, "robust"),
            commands,
            lambda _, clip: measure(clip, sets, images),
            assets,
        )
    write_bytes(assets / "tiny-photos.LICENSE.txt", f"{LICENSE}\n".encode())
    write_json(logs, runs)


def _options(run: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in run["settings"].items() if k != "stage" and v is not None}


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(export)
