"""Reads images for tuning: decoded once and kept on the device if they fit."""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from .._utils.checks import MOST_WORKERS, check_count, check_labels
from .._utils.memory import total_memory
from .._utils.progress import Progress
from .dataset import ImageDataset, ImageTensors, check_dataset, whole_label

_SHARE = 4  # the images may use 1 / _SHARE of the device's memory
_DECODE = 64  # images decoded at once


class Pictures:
    """Reads batches of a data set in any order.

    The images are kept on the device as uint8 if they fit, else read and decoded in every pass.
    The batches are bitwise identical in both cases.

    Args:
        data: map-style data set of N uint8 images ``[C, H, W]`` of one size, and labels.
        device: the device of the batches.
        workers: the number of worker processes that decode images; 0 decodes in this process.
        name: the data set's name in messages and in the progress bar.
        progress: show progress while the images to keep are decoded.
        classes: the number of classes, to check labels when they are read; None skips the check.
        budget: bytes of device memory for the images. Default: a quarter of the device's memory.

    Raises:
        ValueError: the data set is empty, or an argument, image or label is out of range.
        TypeError: an item is not a uint8 image with an integer label.
    """

    def __init__(
        self,
        data: ImageDataset,
        device: torch.device,
        *,
        workers: int = 0,
        name: str = "data",
        progress: bool = True,
        classes: int | None = None,
        budget: int | None = None,
    ) -> None:
        check_dataset(data, name)
        self._data, self._device, self._pinned = data, device, device.type == "cuda"
        self._shape, self._classes, self._name = data[0][0].shape, classes, name
        self._workers = check_count(workers, "workers", least=0, most=MOST_WORKERS)
        if budget is None:
            budget = total_memory(device) // _SHARE
        check_count(budget, "budget", least=0, most=2**63)
        # a tensor, since a GPU divides by a number as multiplication by its reciprocal, whose
        # result differs from `dataset.batches` by one ulp
        self._white = torch.full((), 255.0, dtype=torch.float32, device=device)
        self._kept: tuple[Tensor, Tensor] | None = None
        if len(data) * self._shape.numel() <= budget:
            self._kept = self._keep(progress)

    @property
    def resident(self) -> bool:
        """Whether the images are kept on the device."""
        return self._kept is not None

    @property
    def labels(self) -> Tensor | None:
        """All labels, int64 ``[N]`` on the device; None if the images are not kept there."""
        return None if self._kept is None else self._kept[1]

    def __len__(self) -> int:
        return len(self._data)

    def batches(self, order: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Iterate over rows ``[B]``, float32 pixels ``[B, C, H, W]`` in [0, 1] and labels ``[B]``.

        All three are on the device. For resident images, only ``order`` is copied from the host,
        and there is no other synchronization with the device.

        Args:
            order: rows of the data set, int64 ``[n]`` on the CPU; may contain duplicates.
            batch: the batch size; the last batch may be smaller.

        Raises:
            ValueError, TypeError: ``order`` or ``batch`` is invalid. While reading: an item does
                not match the first one, or any error of the data set.
        """
        check_count(batch, "batch")
        check_order(order, len(self))
        if not len(order):
            return iter(())
        if self._kept is not None:
            return self._from_device(*self._kept, order, batch)
        return self._from_host(order, batch)

    def _from_device(
        self, images: Tensor, labels: Tensor, order: Tensor, batch: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for rows in order.to(self._device).split(batch):
            yield rows, self._pixels(images.index_select(0, rows)), labels.index_select(0, rows)

    def _from_host(self, order: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        chunks = order.to(self._device).split(batch)
        for rows, (images, labels) in zip(chunks, self._read(order, batch), strict=True):
            yield rows, self._pixels(self._moved(images)), self._moved(labels)

    def _pixels(self, images: Tensor) -> Tensor:
        return images.float() / self._white

    def _moved(self, tensor: Tensor) -> Tensor:
        # asynchronous: pinned memory is not reused before the copy has finished
        return tensor.to(self._device, non_blocking=self._pinned)

    def _keep(self, progress: bool) -> tuple[Tensor, Tensor]:
        """Read all images, uint8 ``[N, C, H, W]``, and labels to the device."""
        data = self._data
        if isinstance(data, ImageTensors):
            check_item_labels(data.labels, self._classes, self._name)
            return data.images.to(self._device), data.labels.to(self._device)
        images = torch.empty(len(data), *self._shape, dtype=torch.uint8, device=self._device)
        labels = torch.empty(len(data), dtype=torch.int64, device=self._device)
        done = 0
        with Progress(len(data), f"{self._name} images", "img", show=progress) as bar:
            for part, its_labels in self._read(torch.arange(len(data)), _DECODE):
                rows = slice(done, done + len(part))
                images[rows].copy_(part, non_blocking=self._pinned)
                labels[rows].copy_(its_labels, non_blocking=self._pinned)
                done += len(part)
                bar.update(len(part))
        return images, labels

    def _read(self, rows: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield uint8 images and labels of ``rows`` on the host, pinned if the device is a GPU."""
        data = self._data
        if isinstance(data, ImageTensors):
            for chunk in rows.split(batch):
                images, labels = data.images[chunk], data.labels[chunk]
                check_item_labels(labels, self._classes, self._name)
                if self._pinned:
                    images, labels = images.pin_memory(), labels.pin_memory()
                yield images, labels
            return
        # DataLoader and Subset only need a length and items
        items = cast("torch.utils.data.Dataset[tuple[Tensor, int]]", data)
        loader = DataLoader(
            Subset(items, rows.tolist()),
            batch_size=batch,
            num_workers=self._workers,
            collate_fn=_Joined(self._shape, self._classes, self._name),
            pin_memory=self._pinned,
        )
        try:
            yield from loader
        except Exception as error:
            if not self._workers:
                raise
            # the message contains the worker's traceback; this process's frames refer to the error,
            # and the cycle would keep the workers alive until the next garbage collection
            raise error.with_traceback(None) from None


class _Joined:
    """Collates items to uint8 images ``[B, C, H, W]`` of one shape and labels ``[B]``."""

    def __init__(self, shape: torch.Size, classes: int | None, name: str) -> None:
        self.shape, self.classes, self.name = shape, classes, name

    def __call__(self, items: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        for image, _ in items:
            if image.dtype != torch.uint8 or image.shape != self.shape:
                raise ValueError(
                    f"data must return uint8 images {list(self.shape)} like its first image, got "
                    f"{image.dtype} {list(image.shape)}; load all images with one image_size"
                )
        images, given = zip(*items, strict=True)
        labels = torch.tensor([whole_label(label, "data") for label in given])
        check_item_labels(labels, self.classes, self.name)
        return torch.stack(images), labels


def check_item_labels(labels: Tensor, classes: int | None, name: str) -> None:
    """Check labels that were read; without a number of classes, the caller accepts any."""
    if classes is not None:
        check_labels(labels, len(labels), classes, f"labels of {name}")


def check_order(order: Tensor, n: int) -> None:
    """Raise unless ``order`` has rows of a data set of ``n`` items."""
    if not isinstance(order, Tensor):
        raise TypeError(f"order must be a tensor, got {type(order).__name__}")
    if order.dtype != torch.int64 or order.ndim != 1 or order.device.type != "cpu":
        raise ValueError(
            f"order must be int64 [n] on the CPU, got {order.dtype} {list(order.shape)} on "
            f"{order.device}"
        )
    if len(order):
        low, high = (int(v) for v in torch.aminmax(order))
        if low < 0 or high >= n:
            raise ValueError(f"order must have rows in 0..{n - 1}, got {low if low < 0 else high}")
