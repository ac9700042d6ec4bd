"""The data set interface, checks of data sets, and reading in batches."""

import operator
from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any, Protocol, cast, runtime_checkable

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from .._utils.checks import check_classnames, check_labels, first_difference, shown
from .._utils.hashing import digest

_LOOKED_AT = 8  # items that tell whether two machines have the same files


@runtime_checkable
class ImageDataset(Protocol):
    """A map-style data set of uint8 images ``[C, H, W]`` and integer labels."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, int]: ...


class ImageTensors:
    """A data set in memory.

    Args:
        images: uint8 ``[N, C, H, W]``.
        labels: integers ``[N]``, stored as int64.
        fingerprint: a string that identifies the content. Default: a hash of images and labels.
        classnames: the class names, compared with those of a tuner unless None.

    Attributes:
        source: `Data.source` if `load_data` loaded the images, else None. A run records it.
        unreadable: the number of unreadable images that were left out.
    """

    source: Mapping[str, Any] | None = None
    unreadable: int = 0

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        fingerprint: str = "",
        classnames: Sequence[str] | None = None,
    ) -> None:
        if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4:
            tensor = isinstance(images, Tensor)
            got = f"{images.dtype} {list(images.shape)}" if tensor else type(images).__name__
            raise ValueError(f"images must be uint8 [N, C, H, W], got {got}")
        check_labels(labels, len(images))
        self.images, self.labels = images, labels.to(torch.int64)
        self.classnames = None if classnames is None else check_classnames(classnames)
        self.fingerprint = fingerprint or digest({"images": images, "labels": self.labels})

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


def original(data: ImageDataset, index: int) -> tuple[Image.Image, int]:
    """Return an item's picture before it was resized, and its label.

    That is what the data set's method ``picture`` returns; without one, the image of the item.
    """
    own = getattr(data, "picture", None)
    if callable(own):
        picture, label = own(index)
        return picture, label
    image, label = data[index]
    pixels = image.movedim(0, -1).numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels), label


def fingerprint(data: ImageDataset, rows: Sequence[int] | None = None) -> str:
    """Return the data set's own ``fingerprint`` if it has one, else a hash of its items.

    If given, only the items ``rows`` are hashed, which avoids reading a large data set whole.
    """
    own = getattr(data, "fingerprint", None)
    if isinstance(own, str) and own:
        return own
    # read item by item: the images may exceed the memory and differ in size
    pairs = (data[i] for i in (range(len(data)) if rows is None else rows))
    return digest({}, *(digest({"image": x, "label": torch.tensor(y)}) for x, y in pairs))


def content_of(data: ImageDataset, rows: Sequence[int] | None = None) -> str:
    """Return a hash of the number of items and of a few of them, as they are read now.

    It tells whether another machine has the same files, where `fingerprint` may be a stored one.

    Raises:
        ValueError: an item cannot be read.
    """
    rows = range(len(data)) if rows is None else rows
    some = [data[rows[place]] for place in evenly(_LOOKED_AT, len(rows))]
    items = (digest({"image": x, "label": torch.tensor(whole_label(y, "data"))}) for x, y in some)
    return digest({}, str(len(data)), *items)


def evenly(n: int, total: int) -> list[int]:
    """Return at most n evenly spaced indices below ``total``."""
    n = min(n, total)
    return [round(i * (total - 1) / max(1, n - 1)) for i in range(n)]


def source_of(data: object) -> dict[str, Any]:
    """Return how `load_data` loads ``data`` again; for other data sets, ``name`` is None."""
    own = getattr(data, "source", None)
    return dict(own) if isinstance(own, Mapping) else {"name": None, "type": type(data).__name__}


def files_of(data: object) -> list[str]:
    """Return the paths of few-shot images, relative to the data set's folder; else nothing."""
    return list(getattr(data, "files", None) or ())


def whole_label(label: object, name: str) -> int:
    """Return a label as an int; raise TypeError unless it is an integer."""
    try:
        if isinstance(label, bool):
            raise TypeError
        return operator.index(label)  # type: ignore[arg-type]  # raises TypeError
    except TypeError:
        raise TypeError(f"labels of {name} must be integers, got {shown(label)}") from None


def check_dataset(
    data: object,
    name: str,
    shape: tuple[int, int, int] | None = None,
    classes: int | None = None,
) -> None:
    """Raise unless ``data`` is a non-empty map-style set of uint8 ``[C, H, W]`` and int labels.

    Only the first item is read; ``shape`` is its required shape, None for any. Labels are checked
    against ``classes`` here if ``data.labels`` is a tensor, else when they are read.
    """
    if not isinstance(data, Sized) or not hasattr(data, "__getitem__"):
        raise TypeError(f"{name} must be a map-style data set, got {type(data).__name__}")
    if not len(data):
        raise ValueError(f"{name} is empty")
    item = data[0]
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise TypeError(f"{name} must return (image, label) pairs, got {type(item).__name__}")
    image, label = item
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3:
        got = f"{image.dtype} {list(image.shape)}" if isinstance(image, Tensor) else type(image)
        raise TypeError(f"{name} must return uint8 images [C, H, W], got {got}")
    if shape is not None and image.shape != shape:
        channels, height, width = shape
        remedy = f"image_size={height if height == width else (height, width)}"
        if len(image) != channels:
            remedy += f" and channels={channels}"
        raise ValueError(
            f"{name} has images of shape {list(image.shape)}, but the model needs {list(shape)}; "
            f"load the data with {remedy}"
        )
    whole_label(label, name)
    labels = getattr(data, "labels", None)
    if isinstance(labels, Tensor):
        check_labels(labels, len(data), classes, f"labels of {name}")


def check_same_classes(data: object, name: str, classnames: Sequence[str]) -> None:
    """Raise an error if ``data`` has class names that differ from ``classnames``."""
    own = getattr(data, "classnames", None)
    if own is not None and list(own) != list(classnames):
        raise ValueError(
            f"{name} has other classes than the prompts: {first_difference(own, classnames)}; load "
            "the same classes in the same order"
        )


def batches(
    data: ImageDataset, rows: Sequence[int], batch: int, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield indices ``[B]``, float32 pixels ``[B, C, H, W]`` in [0, 1] and labels of ``rows``."""
    if not len(rows):
        return
    if isinstance(data, ImageTensors):
        for indices in torch.as_tensor(rows, dtype=torch.int64).split(batch):
            yield indices, data.images[indices].float() / 255, data.labels[indices]
        return
    # DataLoader and Subset only need a length and items
    subset = Subset(cast("torch.utils.data.Dataset[tuple[Tensor, int]]", data), list(rows))
    done = 0
    for images, labels in DataLoader(subset, batch_size=batch, num_workers=workers):
        if images.dtype != torch.uint8:  # check_dataset has read only the first item
            raise TypeError(
                f"data must return uint8 images for all items, got {images.dtype} after the first "
                f"{done}"
            )
        indices = torch.as_tensor(rows[done : done + len(images)], dtype=torch.int64)
        labels = torch.as_tensor(labels)
        check_labels(labels, len(images), name="labels of data")
        done += len(images)
        yield indices, images.float() / 255, labels.long()
