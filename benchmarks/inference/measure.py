"""Images a second of `fastprompt.predict`, and of a loop over open_clip's `encode_image`.

Both decode the same files with the same threads, two batches ahead of the model, and take batches
of the same size. The loop normalizes pixels and features and multiplies by the class features in
float32, without gradients.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from fastprompt import load_clip, load_data, predict
from fastprompt._utils.files import read_json
from fastprompt.clip import bundled
from fastprompt.inference.running import decoded
from fastprompt.inference.sources import Picture, find_pictures
from fastprompt.model import CLIPClassifier

from ..common.machine import keep_freed_memory
from ..common.models import random_clip
from ..common.paths import results
from ..common.report import markdown, table, write
from ..common.sizes import THREADS
from ..common.timing import by_turns, gate, ratio

RESULT = results() / "predict.json"
MODELS = ("tiny-photos", "ViT-B-32")  # the latter with random weights
BASELINE, FAST, LOW, DECODE = "open_clip", "fastprompt", "fastprompt, bf16", "decoding alone"
LIMITS = {FAST: 1e-4, LOW: 0.1}


def measure(
    models: Sequence[str] = MODELS,
    images: int = 1000,
    batch: int = 64,
    rounds: int = 3,
    workers: int = THREADS,
    out: str = str(RESULT),
) -> None:
    """Time the implementations by turns, after a check that they agree, and write the file.

    Args:
        models: bundled models, or architectures of open_clip with random weights.
        images: the number of pictures, at most 1,200.
        batch: images that the model takes at once.
        rounds: times that each implementation runs, after one untimed round.
        workers: decoding threads.
    """
    torch.set_num_threads(THREADS)
    kept = keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        rows = [_row(name, images, batch, rounds, workers, Path(folder) / name) for name in models]
    about = {"images": images, "batch": batch, "workers": workers, "freed_memory_kept": kept}
    write(Path(out), {**about, "rows": rows})
    show(out)


def _row(
    name: str, images: int, batch: int, rounds: int, workers: int, folder: Path
) -> dict[str, Any]:
    clip = load_clip(name) if name in bundled.names() else random_clip(name)
    side = max(64, round(clip.pixel_shape[-1] * 256 / 224))  # a photo is larger than the input
    size = _write_pictures(folder, images, side)
    classifier = clip.zero_shot(load_data("photos", shots=1).classnames)
    low = classifier.in_precision("bf16")
    options: dict[str, Any] = {"batch": batch, "workers": workers}
    rungs: dict[str, Callable[[], Tensor]] = {
        BASELINE: lambda: _loop(classifier, folder, batch, workers),
        FAST: lambda: predict(classifier, folder, **options).probabilities,
        LOW: lambda: predict(low, folder, **options).probabilities,
    }
    errors = gate({k: {"probabilities": run()} for k, run in rungs.items()}, BASELINE, LIMITS)
    alone = {DECODE: lambda: _decode(classifier, find_pictures([folder]), batch, workers)}
    times = by_turns({**rungs, **alone}, rounds=rounds, warmup=0)  # the check has run each once
    return {
        "model": name,
        "pictures": {"shorter_side": side, "bytes": size},
        "errors": errors,
        "seconds": {rung: timing.as_dict() for rung, timing in times.items()},
        "speedup": {rung: ratio(times, BASELINE, rung) for rung in (FAST, LOW)},
    }


def _write_pictures(folder: Path, images: int, side: int) -> int:
    """Write pictures of `photos` as JPEG files; return their size in bytes."""
    folder.mkdir()
    data = load_data("photos", image_size=64)
    every = [data.test[i] for i in range(len(data.test))]
    every += [data.val[i] for i in range(len(data.val))]
    for i, (pixels, _) in enumerate(every[:images]):
        picture = to_pil_image(pixels).resize((side * 4 // 3, side), Image.Resampling.BICUBIC)
        picture.save(folder / f"{i:04d}.jpg", quality=90)
    return sum(file.stat().st_size for file in folder.iterdir())


@torch.no_grad()
def _loop(classifier: CLIPClassifier, folder: Path, batch: int, workers: int) -> Tensor:
    """Return the probabilities of open_clip's own encoder."""
    clip, found = classifier.clip, []
    model: Any = clip.model
    for group in decoded(classifier.preprocess, find_pictures([folder]), batch, workers):
        if group.images is not None:
            pixels = (group.images.float() / 255 - clip.mean) / clip.std
            features = F.normalize(model.encode_image(pixels), dim=-1)
            logits = clip.logit_scale * features @ classifier.text_features.T
            found.append(logits.softmax(dim=-1))
    return torch.cat(found)


def _decode(
    classifier: CLIPClassifier, pictures: Sequence[Picture], batch: int, workers: int
) -> None:
    for _ in decoded(classifier.preprocess, pictures, batch, workers):
        pass


def lines(found: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of the result's table: seconds (images a second), and the speed-ups."""
    rows = [["model", "files", BASELINE, FAST, LOW, DECODE, FAST, LOW]]
    for row in found["rows"]:
        times = (row["seconds"][rung]["median"] for rung in (BASELINE, FAST, LOW, DECODE))
        rates = (f"{time:.1f} s ({found['images'] / time:.1f}/s)" for time in times)
        faster = (f"{row['speedup'][rung]['medians']:.2f}x" for rung in (FAST, LOW))
        rows.append([row["model"], f"{row['pictures']['bytes'] / 1e6:.1f} MB", *rates, *faster])
    return rows


def show(out: str = str(RESULT)) -> None:
    """Print the file's table."""
    head, *rows = lines(read_json(Path(out)))
    print(table([head, *rows]))
    print(markdown(head, rows))
