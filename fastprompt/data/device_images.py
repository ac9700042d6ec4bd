"""A data set's images for tuning: decoded once and kept on the device where they fit there."""

import operator
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from .._utils.checks import check_count, check_labels
from .._utils.memory import total_memory
from .._utils.progress import Progress
from .dataset import ImageDataset, ImageTensors, check_dataset

_SHARE = 4  # of the device's memory, one part in so many
_DECODE = 64  # images decoded at once


class Pictures:
    """A data set's images in any order, batch by batch.

    Kept on the device as uint8 where they fit there, else read and decoded anew in every pass: the
    same bits either way.

    Args:
        data: map-style data set of N uint8 images ``[3, H, W]`` of one size, and labels.
        device: where the batches are wanted.
        workers: processes that decode images; 0 decodes in this one.
        name: of the data set, for messages and the progress bar.
        progress: show a bar while images are decoded to be kept, where the output is a terminal.
        classes: how many there are: a label beyond them is refused when it is read; None takes any.
        budget: bytes that the images may take on the device; by default a quarter of its memory.

    Raises:
        ValueError, TypeError: an empty data set, or one whose items are no such images and labels.
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
        self._workers = check_count(workers, "workers", least=0)
        if budget is None:
            budget = total_memory(device) // _SHARE
        check_count(budget, "budget", least=0)
        # a tensor: a GPU multiplies by the reciprocal of a number, one ulp away from what
        # `loading.batches` gives
        self._white = torch.full((), 255.0, device=device)
        self._kept: tuple[Tensor, Tensor] | None = None
        if len(data) * self._shape.numel() <= budget:
            self._kept = self._keep(progress)

    @property
    def resident(self) -> bool:
        """Whether the images are kept on the device."""
        return self._kept is not None

    @property
    def labels(self) -> Tensor | None:
        """All labels, int64 ``[N]`` on the device; None where the images are not kept there."""
        return None if self._kept is None else self._kept[1]

    def __len__(self) -> int:
        return len(self._data)

    def batches(self, order: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Rows ``[B]``, pixels float32 ``[B, 3, H, W]`` in [0, 1], labels ``[B]``; on the device.

        Resident images cost one copy from the host, that of ``order``; after it nothing waits for
        the device.

        Args:
            order: rows of the data set, int64 ``[n]`` on the CPU; any of them, any number of times.
            batch: images in a batch; the last one may have fewer.

        Raises:
            ValueError, TypeError: an order or a batch size out of range. While reading: an item
                unlike the first, or what the data set itself raises.
        """
        check_count(batch, "batch")
        _check_order(order, len(self))
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
        # without waiting: pinned memory is not given out again before it has been copied
        return tensor.to(self._device, non_blocking=self._pinned)

    def _keep(self, progress: bool) -> tuple[Tensor, Tensor]:
        """All images uint8 ``[N, 3, H, W]`` and labels, on the device."""
        data = self._data
        if isinstance(data, ImageTensors):
            _check_labels(data.labels, self._classes, self._name)
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
        """Images uint8 and labels on the host, in ``rows``' order, pinned for a GPU."""
        data = self._data
        if isinstance(data, ImageTensors):
            for chunk in rows.split(batch):
                images, labels = data.images[chunk], data.labels[chunk]
                _check_labels(labels, self._classes, self._name)
                if self._pinned:
                    images, labels = images.pin_memory(), labels.pin_memory()
                yield images, labels
            return
        # a Subset of any object with a length and items: DataLoader asks for no more
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
            # its text has the worker's own traceback; the frames of this process refer to the
            # error, and this circle would keep the workers until the next garbage collection
            raise error.with_traceback(None) from None


class _Joined:
    """Items to a batch: images uint8 ``[B, 3, H, W]`` of one shape, and labels."""

    def __init__(self, shape: torch.Size, classes: int | None, name: str) -> None:
        self.shape, self.classes, self.name = shape, classes, name

    def __call__(self, items: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        for image, _ in items:
            if image.dtype != torch.uint8 or image.shape != self.shape:
                raise ValueError(
                    f"data must give uint8 images {list(self.shape)} as its first one is, got "
                    f"{image.dtype} {list(image.shape)}: load it with one image_size"
                )
        images, given = zip(*items, strict=True)
        labels = torch.tensor([_whole(label) for label in given])
        _check_labels(labels, self.classes, self.name)
        return torch.stack(images), labels


def _check_labels(labels: Tensor, classes: int | None, name: str) -> None:
    # without a number of classes any label will do, as the caller knows what to do with it
    if classes is not None:
        check_labels(labels, len(labels), classes, f"labels of {name}")


def _whole(label: int) -> int:
    try:
        return operator.index(label)
    except TypeError:
        raise TypeError(f"labels of data must be whole numbers, got {label!r}") from None


def _check_order(order: Tensor, n: int) -> None:
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
            raise ValueError(f"order must hold rows in 0..{n - 1}, got {low if low < 0 else high}")
