"""Conversion of images to uint8 tensors of one size, and train, val and test splits."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from .dataset import ImageDataset

Split = tuple[ImageDataset, Tensor]  # a whole split and its labels


# a source without splits is split 70 / 10 / 20 per class
_SHARES = {"train": (0.0, 0.7), "val": (0.7, 0.8), "test": (0.8, 1.0)}


def to_square(image_size: int) -> Callable[[Any], Tensor]:
    """Return a transform to uint8 RGB ``[3, S, S]``: bicubic resize and center crop."""
    return v2.Compose(
        [
            v2.RGB(),
            v2.PILToTensor(),
            v2.Resize(image_size, v2.InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(image_size),
        ]
    )


class TorchvisionImages:
    """The items ``rows`` of a torchvision data set, as (uint8 tensor, int label)."""

    def __init__(self, data: Any, rows: Sequence[int], fingerprint: str) -> None:
        self.data, self.rows, self.fingerprint = data, list(rows), fingerprint

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = self.rows[index]
        try:
            image, label = self.data[row]
        except OSError as error:  # including Pillow's error for a broken file
            samples = getattr(self.data, "samples", None)
            which = samples[row][0] if samples else f"image {row}"
            raise ValueError(f"data: {which} is unreadable ({error}); fix or remove it") from None
        return image, int(label)


def cut(labels: Tensor, split: str) -> list[int]:
    """Return the rows of one split of a source without splits, by `_SHARES` of each class.

    Of three or more images, each split has at least one. The seed is fixed, so that no few-shot
    seed can move test images into the training set.
    """
    rows: list[int] = []
    for label in labels.unique().tolist():
        mine = (labels == label).nonzero()[:, 0]
        generator = torch.Generator().manual_seed(label)
        order = mine[torch.randperm(len(mine), generator=generator)]
        rows += order[slice(*_bounds(len(mine))[split])].tolist()
    return sorted(rows)


def _bounds(n: int) -> dict[str, tuple[int, int]]:
    """Return first and end position of each split among ``n`` images of a class."""
    bounds = {split: (round(low * n), round(high * n)) for split, (low, high) in _SHARES.items()}
    first, end = bounds["val"]
    if n >= 3 and first == end:
        bounds["train"], bounds["val"] = (0, first - 1), (first - 1, end)
    return bounds


def train_or_val(labels: Tensor, split: str, own_val: bool) -> list[int]:
    """Return the rows of ``train`` or ``val``; holds out ``val`` unless the source has one."""
    everything = range(len(labels))
    if own_val:
        return list(everything)
    held = cut(labels, "val")
    return held if split == "val" else sorted(set(everything) - set(held))
