"""Reading a data set in batches."""

from collections.abc import Iterator, Sequence, Sized
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from .._utils.checks import check_classnames, check_labels, some
from .._utils.hashing import digest


@runtime_checkable
class ImageDataset(Protocol):
    """A map-style data set: uint8 image ``[3, H, W]`` and label."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, int]: ...


class ImageTensors:
    """Images in memory: uint8 ``[N, 3, H, W]`` and labels int64 ``[N]``.

    Args:
        fingerprint: what the images are, if a name can say it; else it is taken from their bytes.
        classnames: the labels' names, to be compared with a tuner's; None leaves them unsaid.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        fingerprint: str = "",
        classnames: Sequence[str] | None = None,
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"images must be uint8 [N, 3, H, W], got {images.dtype} {list(images.shape)}"
            )
        check_labels(labels, len(images))
        self.images, self.labels = images, labels.to(torch.int64)
        self.classnames = None if classnames is None else check_classnames(classnames)
        self.fingerprint = fingerprint or digest({"images": images, "labels": self.labels})

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


def fingerprint(data: ImageDataset, rows: Sequence[int] | None = None) -> str:
    """What identifies the data set's content: its own ``fingerprint``, else a hash of its items.

    With ``rows`` those items alone: a few of a large data set need not wait for all of it.
    """
    own = getattr(data, "fingerprint", None)
    if isinstance(own, str) and own:
        return own
    # read item by item: the images need not fit in memory, nor be of one size
    pairs = (data[i] for i in (range(len(data)) if rows is None else rows))
    return digest({}, *(digest({"image": x, "label": torch.tensor(y)}) for x, y in pairs))


def check_dataset(
    data: object, name: str, image_size: int | None = None, classes: int | None = None
) -> None:
    """Raise unless ``data`` is a non-empty map-style set of uint8 ``[3, H, W]`` and int labels.

    Labels are compared with ``classes`` where the set holds them as a tensor; the others only show
    when they are read.
    """
    if not isinstance(data, Sized) or not hasattr(data, "__getitem__"):
        raise TypeError(f"{name} must be a map-style data set, got {type(data).__name__}")
    if not len(data):
        raise ValueError(f"{name} is empty")
    item = data[0]
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise TypeError(f"{name} must give (image, label) pairs, got {type(item).__name__}")
    image = item[0]
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3:
        got = f"{image.dtype} {list(image.shape)}" if isinstance(image, Tensor) else type(image)
        raise TypeError(f"{name} must give uint8 images [3, H, W], got {got}")
    if image_size is not None and image.shape != (3, image_size, image_size):
        raise ValueError(
            f"{name} has images {list(image.shape)}, the model takes [3, {image_size}, "
            f"{image_size}]: load the data with image_size={image_size}"
        )
    labels = getattr(data, "labels", None)
    if isinstance(labels, Tensor):
        check_labels(labels, len(data), classes, f"labels of {name}")


def check_same_classes(data: object, name: str, classnames: Sequence[str]) -> None:
    """Raise where ``data`` says what its classes are, and they are others."""
    own = getattr(data, "classnames", None)
    if own is not None and list(own) != list(classnames):
        raise ValueError(
            f"{name} has the classes {some(list(own))}, the prompts are for "
            f"{some(list(classnames))}: load the same classes, in the same order"
        )


def batches(
    data: ImageDataset, rows: Sequence[int], batch: int, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Indices ``[B]``, pixels float32 ``[B, 3, H, W]`` in [0, 1] and labels, in ``rows``' order."""
    if not len(rows):
        return
    if isinstance(data, ImageTensors):
        for indices in torch.as_tensor(rows, dtype=torch.int64).split(batch):
            yield indices, data.images[indices].float() / 255, data.labels[indices]
        return
    # a Subset of any object with a length and items: DataLoader asks for no more
    subset = Subset(cast("torch.utils.data.Dataset[tuple[Tensor, int]]", data), list(rows))
    done = 0
    for images, labels in DataLoader(subset, batch_size=batch, num_workers=workers):
        if images.dtype != torch.uint8:  # of the first item it was seen to be
            raise TypeError(f"data must give uint8 images, got {images.dtype} behind item {done}")
        indices = torch.as_tensor(rows[done : done + len(images)], dtype=torch.int64)
        done += len(images)
        yield indices, images.float() / 255, torch.as_tensor(labels, dtype=torch.int64)
