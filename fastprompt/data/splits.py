"""Conversion of images to uint8 tensors of one size, and train, val and test splits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from .dataset import ImageDataset

Split = tuple[ImageDataset, Tensor]  # a whole split and its labels
Size = int | tuple[int, int]  # side of a square image, or height and width


# a source without splits is split 70 / 10 / 20 per class
_SHARES = {"train": (0.0, 0.7), "val": (0.7, 0.8), "test": (0.8, 1.0)}


@dataclass(frozen=True)
class Form:
    """Form of the images of a data set.

    Attributes:
        size: side of square images in pixels, or height and width.
        channels: 3 for RGB, 1 for gray.
    """

    size: Size = 48
    channels: int = 3

    def __str__(self) -> str:
        """Return a part of fingerprints; for square RGB images, their side."""
        size = self.size if isinstance(self.size, int) else "x".join(map(str, self.size))
        return str(size) if self.channels == 3 else f"{size}/gray"

    def transform(self) -> Callable[[Any], Tensor]:
        """Return a transform to uint8 ``[C, H, W]``: bicubic resize and center crop."""
        return v2.Compose(
            [
                v2.RGB() if self.channels == 3 else v2.Grayscale(),
                v2.PILToTensor(),
                self._resize,
                v2.CenterCrop(self.size),
            ]
        )

    def _resize(self, image: Tensor) -> Tensor:
        """Resize ``[C, H, W]`` to the smallest size that contains the crop."""
        size: Any = self.size
        if not isinstance(size, int):
            scale = max(new / old for new, old in zip(size, image.shape[1:], strict=True))
            covers = zip(size, image.shape[1:], strict=True)
            size = [max(new, round(scale * old)) for new, old in covers]
        return v2.functional.resize(image, size, v2.InterpolationMode.BICUBIC, antialias=True)

    def of_rendered(self, images: Tensor) -> Tensor:
        """Convert square RGB images, uint8 ``[N, 3, S, S]``; all of each image is kept."""
        if not isinstance(self.size, int):
            images = v2.functional.resize(images, list(self.size), antialias=True)
        return images if self.channels == 3 else v2.functional.rgb_to_grayscale(images)


class TorchvisionImages:
    """The items ``rows`` of a torchvision data set, as (uint8 tensor, int label)."""

    def __init__(self, data: Any, rows: Sequence[int], form: Form, fingerprint: str) -> None:
        self.data, self.rows, self.fingerprint = data, list(rows), fingerprint
        self._transform = form.transform()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = self.rows[index]
        try:
            image, label = self.data[row]
            image = self._transform(image)
        except Exception as error:  # Pillow's plugins raise any error on a damaged file
            samples = getattr(self.data, "samples", None)
            which = samples[row][0] if samples else f"image {row} of {type(self.data).__name__}"
            raise ValueError(f"data: {which} is unreadable ({error}); fix or remove it") from error
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
