"""The photographs of the pre-training: reading, drawing of batches, augmentation.

    python -m pretraining.photo_data --help

writes `caltech_seen.txt`: the pictures of Caltech101's training split that the models see. The
others are for tuning.
"""

import io
import json
import math
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fastprompt._utils.files import write_bytes
from fastprompt.data.coop import find_coop
from fastprompt.data.splits import Form

from .photo_captions import NAMES
from .photo_words import CALTECH101, PHOTOS64

SIZE = 64
SEEN = Path(__file__).with_name("caltech_seen.txt")
_CALTECH, _PICTURES = "caltech-101/split_zhou_Caltech101.json", "caltech-101/101_ObjectCategories"
SHOTS, DRAW_SEED = 16, 1
_HELD = 8  # pictures of each class of photos64's train split that measure the progress
_CALTECH_SHARE = 5 / 32  # of a batch


# ---- which pictures of Caltech101 are seen -----------------------------------------------------


def shipped_rows(labels: list[int], drawn: list[int]) -> list[int]:
    """Return the rows of the training split that are for tuning: CoOp's draw, in its order.

    Of a class, at least a third of the pictures stays for the pre-training.
    """
    left = {label: labels.count(label) * 2 // 3 for label in set(labels)}
    rows = []
    for row in drawn:
        if left[labels[row]]:
            left[labels[row]] -= 1
            rows.append(row)
    return rows


def write_seen(data: Path = Path("../shared/data"), out: Path = SEEN) -> None:
    """Write the names of the pictures that the models may see."""
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(data / "caltech-101.zip") as archive:
            archive.extractall(folder)
        coop = find_coop("Caltech101", Path(folder))
        train = coop.content.splits["train"]
        drawn = coop.rows("train", SHOTS, DRAW_SEED) or []
    kept = set(shipped_rows(train.labels, drawn))
    names = sorted(name for row, name in enumerate(train.names) if row not in kept)
    write_bytes(out, "".join(f"{name}\n" for name in names).encode())


# ---- reading -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pictures:
    """Pictures, uint8 ``[N, 3, 64, 64]``, and their labels, int64 ``[N]``."""

    pixels: Tensor
    labels: Tensor

    def some(self, n: int, seed: int = 0) -> "Pictures":
        """Return ``n`` pictures in a random order."""
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(seed))
        return Pictures(self.pixels[order[:n]], self.labels[order[:n]])


@dataclass(frozen=True)
class Photos:
    """What the training sees (``photos``, ``caltech``) and what measures its progress.

    The labels of ``held`` are those of ``PHOTOS64``, the labels of ``val`` those of ``CALTECH101``.
    """

    photos: Pictures
    caltech: Pictures
    held: Pictures
    val: Pictures


def _views(picture: Image.Image) -> list[Tensor]:
    """Return the square in the middle and, of long pictures, those at both ends."""
    ratio = SIZE / min(picture.size)
    width, height = (max(SIZE, round(ratio * side)) for side in picture.size)
    whole = Form((height, width)).transform()(picture)
    spare = max(width, height) - SIZE
    starts = (spare // 2,) if spare < SIZE // 8 else (0, spare // 2, spare)
    return [whole[:, :, s : s + SIZE] if width > height else whole[:, s : s + SIZE] for s in starts]


def _picture(archive: zipfile.ZipFile, name: str) -> Image.Image:
    return Image.open(io.BytesIO(archive.read(name))).convert("RGB")


def _stack(items: Iterable[tuple[Tensor, int]]) -> Pictures:
    pixels, labels = zip(*items, strict=True)
    return Pictures(torch.stack(pixels), torch.tensor(labels))


def read_photos64(data: Path, split: str) -> Pictures:
    """Return a split of photos64, ``"train"`` or ``"test"``, in the order of classes and names."""
    form = Form(SIZE).transform()
    with zipfile.ZipFile(data / "photos64.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".webp"))
        return _stack(
            (form(_picture(archive, name)), label)
            for label, title in enumerate(PHOTOS64)
            for name in names
            if name.startswith(f"{split}/{title}/")
        )


def _hold_out(pictures: Pictures) -> tuple[Pictures, Pictures]:
    """Return the pictures without, and only, the last ones of each class."""
    labels = pictures.labels
    last = torch.ones(len(labels), dtype=torch.bool)
    last[:-_HELD] = labels[:-_HELD] != labels[_HELD:]  # the classes are in order
    seen, held = (Pictures(pictures.pixels[rows], labels[rows]) for rows in (~last, last))
    return seen, held


def _read_caltech(data: Path) -> tuple[Pictures, Pictures]:
    """Return the seen pictures of the train split, and the val split."""
    form, titles = Form(SIZE).transform(), list(CALTECH101)
    names = set(SEEN.read_text("utf-8").splitlines())
    with zipfile.ZipFile(data / "caltech-101.zip") as archive:
        splits = json.loads(archive.read(_CALTECH))
        seen = [
            (view, NAMES.index(title.replace("_", " ")))
            for name, _, title in splits["train"]
            if name in names
            for view in _views(_picture(archive, f"{_PICTURES}/{name}"))
        ]
        val = [
            (form(_picture(archive, f"{_PICTURES}/{name}")), titles.index(title.replace("_", " ")))
            for name, _, title in splits["val"]
        ]
    return _stack(seen), _stack(val)


def read_photos(data: Path) -> Photos:
    """Read ``photos64.zip`` and ``caltech-101.zip`` in the folder ``data``."""
    photos, held = _hold_out(read_photos64(data, "train"))
    caltech, val = _read_caltech(data)
    return Photos(photos, caltech, held, val)


# ---- batches -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batches:
    """Batches of both sources; what a batch holds depends on the seed and its step alone."""

    data: Photos
    size: int
    seed: int

    @property
    def per_epoch(self) -> int:
        """The steps in which each picture of photos64 is drawn once."""
        return max(1, len(self.data.photos.labels) // (self.size - self._caltech))

    @property
    def _caltech(self) -> int:
        return round(self.size * _CALTECH_SHARE)

    def draw(self, step: int, generator: torch.Generator) -> Pictures:
        """Return the pictures of a step, uint8, and their labels."""
        data, n = self.data, self.size - self._caltech
        epoch, place = divmod(step, self.per_epoch)
        shuffle = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        rows = torch.randperm(len(data.photos.labels), generator=shuffle)[place * n :][:n]
        counts = torch.bincount(data.caltech.labels)
        # a class is drawn as often as the root of its size
        chances = counts[data.caltech.labels] ** -0.5
        others = torch.multinomial(chances, self._caltech, replacement=True, generator=generator)
        return Pictures(
            torch.cat([data.photos.pixels[rows], data.caltech.pixels[others]]),
            torch.cat([data.photos.labels[rows], data.caltech.labels[others]]),
        )


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Crop, flip and recolor uint8 images ``[B, 3, S, S]`` at random; return them in [0, 1]."""

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(len(pixels), generator=generator) * (high - low) + low

    area, shape = uniform(0.35, 1), uniform(-math.log(4 / 3), math.log(4 / 3)).exp()
    width, height = (area * shape).sqrt().clamp(max=1), (area / shape).sqrt().clamp(max=1)
    theta = torch.zeros(len(pixels), 2, 3)
    theta[:, 0, 0] = width * uniform(-1, 1).sign()
    theta[:, 1, 1] = height
    theta[:, 0, 2] = uniform(-1, 1) * (1 - width)
    theta[:, 1, 2] = uniform(-1, 1) * (1 - height)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    x = F.grid_sample(pixels / 255, grid, padding_mode="border", align_corners=False)
    light, contrast, color = (uniform(0.7, 1.3).view(-1, 1, 1, 1) for _ in range(3))
    mean = x.mean(dim=(1, 2, 3), keepdim=True) * light
    x = torch.lerp(mean, x * light, contrast)
    return torch.lerp(x.mean(dim=1, keepdim=True), x, color).clamp_(0, 1)


def mix(x: Tensor, generator: torch.Generator) -> tuple[Tensor, float]:
    """Mix images with those in the reverse order: mixup or CutMix, or, of every other batch, none.

    Returns the mixtures and the share of the images' own classes.
    """
    kind, share = torch.rand(2, generator=generator).tolist()
    if kind < 0.5:
        return x, 1.0
    if kind < 0.75:
        share = 0.5 + share / 2
        return torch.lerp(x.flip(0), x, share), share
    side = x.shape[-1]
    edge = max(1, round(side * math.sqrt(1 - share)))
    top, left = torch.randint(side - edge + 1, (2,), generator=generator).tolist()
    box = (..., slice(top, top + edge), slice(left, left + edge))
    out = x.clone()
    out[box] = x.flip(0)[box]
    return out, 1 - (edge / side) ** 2


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(write_seen)
