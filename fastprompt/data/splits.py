"""Images of a source as uint8 tensors of one size, and its cut into train, val and test."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from .dataset import ImageDataset

Split = tuple[ImageDataset, Tensor]  # a whole split and its labels


# where a source has no split of its own, each class is cut 70 / 10 / 20
_SHARES = {"train": (0.0, 0.7), "val": (0.7, 0.8), "test": (0.8, 1.0)}


def to_square(image_size: int) -> Callable[[Any], Tensor]:
    """Picture to uint8 ``[3, S, S]``: RGB, shorter side to S (bicubic), the middle square."""
    return v2.Compose(
        [
            v2.RGB(),
            v2.PILToTensor(),
            v2.Resize(image_size, v2.InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(image_size),
        ]
    )


class TorchvisionImages:
    """A torchvision data set's items ``rows``, as (uint8 tensor, int label)."""

    def __init__(self, data: Any, rows: Sequence[int], fingerprint: str) -> None:
        self.data, self.rows, self.fingerprint = data, list(rows), fingerprint

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = self.rows[index]
        try:
            image, label = self.data[row]
        except OSError as error:  # Pillow's, of a broken file, too
            samples = getattr(self.data, "samples", None)
            which = samples[row][0] if samples else f"image {row}"
            raise ValueError(f"data: {which} can't be read: mend or remove it ({error})") from None
        return image, int(label)


def cut(labels: Tensor, split: str) -> list[int]:
    """One split's rows where the source has no splits: each class cut at `_SHARES`.

    Always the same cut: another few-shot seed must not move test images into the training set.
    """
    low, high = _SHARES[split]
    rows: list[int] = []
    for label in labels.unique().tolist():
        mine = (labels == label).nonzero()[:, 0]
        generator = torch.Generator().manual_seed(label)
        order = mine[torch.randperm(len(mine), generator=generator)]
        rows += order[round(low * len(mine)) : round(high * len(mine))].tolist()
    return sorted(rows)


def train_or_val(labels: Tensor, split: str, own_val: bool) -> list[int]:
    """Rows of the training images, less those held out as ``val`` where the source has none."""
    everything = range(len(labels))
    if own_val:
        return list(everything)
    held = cut(labels, "val")
    return held if split == "val" else sorted(set(everything) - set(held))
