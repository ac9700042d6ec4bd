"""Clean accuracy of zero-shot classifiers as float32 and as int8 ONNX files, on all test pictures.

The pictures are those of `photos`, in the order of the set; the same batches go to each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fastprompt import load_clip, load_data
from fastprompt._utils.files import read_json
from fastprompt.data.dataset import batches
from fastprompt.interop.export_onnx import runner
from fastprompt.interop.exporting import onnx_files

from ..common.paths import results
from ..common.report import markdown, table, write

RESULT = results() / "int8.json"
MODELS = ("tiny-photos", "tiny-photos-robust")
OURS, SINGLE, SMALL = "fastprompt", "ONNX, float32", "ONNX, int8"
_BATCH = 64


def compare(
    models: Sequence[str] = MODELS, limit: int | None = None, out: str = str(RESULT)
) -> None:
    """Count the pictures that each classifies correctly, and write the file. Needs onnxruntime.

    Args:
        models: bundled models.
        limit: the number of pictures, from the first; default: all.
    """
    rows = [_row(name, limit) for name in models]
    write(Path(out), {"data": "photos, test", "rows": rows})
    show(out)


@torch.no_grad()
def _row(name: str, limit: int | None) -> dict[str, Any]:
    clip = load_clip(name)
    data = load_data("photos").for_model(clip)
    classifier = clip.zero_shot(data.classnames, data.templates)
    single, small = onnx_files(classifier, int8=True)
    rungs = {OURS: classifier, SINGLE: runner(single), SMALL: runner(small)}
    right, same = dict.fromkeys(rungs, 0), 0
    rows = list(range(len(data.test)))[:limit]
    for _, images, labels in batches(data.test, rows, _BATCH):
        found = {rung: model(images).argmax(dim=1) for rung, model in rungs.items()}
        for rung, classes in found.items():
            right[rung] += int((classes == labels).sum())
        same += int((found[SINGLE] == found[SMALL]).sum())
    sizes = {SINGLE: len(single), SMALL: len(small)}
    about = {"model": name, "pictures": len(rows), "bytes": sizes}
    return {**about, "right": right, "int8_predicts_the_same": same}


def lines(found: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of the result's table."""
    head = ["model, zero-shot", "pictures", OURS, SINGLE, SMALL, "same class in int8"]
    rows = [head]
    for row in found["rows"]:
        count = row["pictures"]
        cells = [f"{100 * row['right'][OURS] / count:.1f} %"]
        for rung in (SINGLE, SMALL):
            size = row["bytes"][rung] / 1e6
            cells.append(f"{100 * row['right'][rung] / count:.1f} % ({size:.1f} MB)")
        same = f"{100 * row['int8_predicts_the_same'] / count:.1f} %"
        rows.append([row["model"], str(count), *cells, same])
    return rows


def show(out: str = str(RESULT)) -> None:
    """Print the file's table."""
    head, *rows = lines(read_json(Path(out)))
    print(table([head, *rows]))
    print(markdown(head, rows))
