"""Random resized crops of the original pictures, cut by Pillow as torchvision's transforms do."""

import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .._utils.checks import check_count
from .._utils.distributed import processes
from .._utils.memory import total_memory
from .._utils.progress import Progress
from .augment import RandomCrops
from .dataset import ImageDataset, check_dataset, original, whole_label
from .device_images import check_item_labels, check_order
from .encoded import EncodedImages
from .few_shot import Chosen

_SHARE = 4  # the decoded pictures may use 1 / _SHARE of the host's memory
_AHEAD = 2  # batches that are cut before they are asked for
_FLIP = Image.Transpose.FLIP_LEFT_RIGHT

Decoded = tuple[np.ndarray, int]  # uint8 [H, W, 3], or [H, W] of a gray picture, and its label


class PictureCrops:
    """Reads batches of randomly cropped pictures in any order.

    A crop has the bits of torchvision's ``RandomResizedCrop`` with the same box, bicubic
    interpolation and antialiasing, and ``RandomHorizontalFlip``, applied to the RGB picture before
    any other resize, as in Dassl. Of a data set without original pictures, its images are cropped.

    Pictures are decoded once and kept in the host's memory as far as they fit, the others in every
    pass. Threads decode and cut, ahead of the batches that are used. Neither changes the result.

    Args:
        data: map-style data set of uint8 images ``[C, H, W]`` of one size, which is also that of
            the crops, and labels; see `dataset.original`.
        device: the device of the batches.
        crops: the random boxes and flips.
        name: the data set's name in messages and in the progress bar.
        progress: show progress while the pictures to keep are decoded.
        classes: the number of classes, to check labels when they are read; None skips the check.
        budget: bytes of the host's memory for decoded pictures. Default: a quarter of it.
        threads: the number of threads. Default: one for each CPU, at most 8.

    Raises:
        ValueError: the data set is empty, or an argument or label is out of range, or a picture is
            unreadable.
        TypeError: an item is not a uint8 image with an integer label.
    """

    def __init__(
        self,
        data: ImageDataset,
        device: torch.device,
        crops: RandomCrops,
        *,
        name: str = "data",
        progress: bool = True,
        classes: int | None = None,
        budget: int | None = None,
        threads: int | None = None,
    ) -> None:
        check_dataset(data, name)
        self._data, self._device, self._crops = data, device, crops
        self._name, self._classes = name, classes
        self._mode = "L" if len(data[0][0]) == 1 else "RGB"
        height, width = data[0][0].shape[1:]
        self._size = (width, height)
        if budget is None:
            budget = total_memory(torch.device("cpu")) // (_SHARE * processes())
        check_count(budget, "budget", least=0, most=2**63)
        self._threads = min(8, os.cpu_count() or 1) if threads is None else threads
        check_count(self._threads, "threads")
        # other data sets need not allow several threads
        inner = data.data if isinstance(data, Chosen) else data
        self._lock = None if isinstance(inner, EncodedImages) else threading.Lock()
        # a tensor: see `Pictures`
        self._white = torch.full((), 255.0, dtype=torch.float32, device=device)
        self._kept = self._keep(budget, progress)

    @property
    def resident(self) -> bool:
        """Whether all pictures are kept in memory."""
        return len(self._kept) == len(self)

    def __len__(self) -> int:
        return len(self._data)

    def batches(
        self, order: Tensor, batch: int, epoch: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Iterate over rows ``[B]``, float32 crops ``[B, C, H, W]`` in [0, 1] and labels ``[B]``.

        All three are on the device. A picture's crop depends on the seed, the epoch and the row
        alone.

        Args:
            order: rows of the data set, int64 ``[n]`` on the CPU; may contain duplicates.
            batch: the batch size; the last batch may be smaller.
            epoch: the epoch, counted from 0.

        Raises:
            ValueError, TypeError: an argument is invalid. While reading: a label is invalid, or any
                error of the data set.
        """
        check_count(batch, "batch")
        check_order(order, len(self))
        return self._batches(order, batch, self._crops.numbers(len(self), epoch))

    def _batches(
        self, order: Tensor, batch: int, numbers: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        ahead: deque[tuple[Tensor, list[Future[Decoded]]]] = deque()
        pool = ThreadPoolExecutor(self._threads)
        try:
            for rows in order.split(batch) if len(order) else ():
                drawn = numbers[rows].tolist()
                cuts = zip(rows.tolist(), drawn, strict=True)
                ahead.append((rows, [pool.submit(self._cut, *each) for each in cuts]))
                if len(ahead) > _AHEAD:
                    yield self._joined(*ahead.popleft())
            while ahead:
                yield self._joined(*ahead.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _joined(self, rows: Tensor, cuts: list[Future[Decoded]]) -> tuple[Tensor, Tensor, Tensor]:
        """Return a batch on the device."""
        crops, given = zip(*(cut.result() for cut in cuts), strict=True)
        labels = torch.tensor(given)
        check_item_labels(labels, self._classes, self._name)
        images = torch.from_numpy(np.stack(crops))  # [B, H, W, C], or [B, H, W]
        images = images[:, None] if images.ndim == 3 else images.movedim(3, 1)
        parts = [rows, images.contiguous(), labels]
        if self._device.type == "cuda":
            # asynchronous: pinned memory is not reused before the copy has finished
            parts = [part.pin_memory() for part in parts]
        on_device = [part.to(self._device, non_blocking=True) for part in parts]
        return on_device[0], on_device[1].float() / self._white, on_device[2]

    def _cut(self, row: int, numbers: list[float]) -> Decoded:
        pixels, label = self._kept[row] if row < len(self._kept) else self._decoded(row)
        top, left, height, width, flip = self._crops.pixel_box(numbers, *pixels.shape[:2])
        # cut out before it is resized: the filter must not read pixels outside of the box
        box = Image.fromarray(np.ascontiguousarray(pixels[top : top + height, left : left + width]))
        crop = box.resize(self._size, Image.Resampling.BICUBIC)
        return np.asarray(crop.transpose(_FLIP) if flip else crop), label

    def _decoded(self, row: int) -> Decoded:
        if self._lock is None:
            picture, label = original(self._data, row)
        else:
            with self._lock:
                picture, label = original(self._data, row)
        return np.asarray(picture.convert(self._mode)), whole_label(label, self._name)

    def _keep(self, budget: int, progress: bool) -> list[Decoded]:
        """Decode the first pictures, as many as fit into the budget."""
        kept: list[Decoded] = []
        n, chunk = len(self), 8 * self._threads
        with (
            Progress(n, f"{self._name} pictures", "img", show=progress) as bar,
            ThreadPoolExecutor(self._threads) as pool,
        ):
            for start in range(0, n, chunk):
                for found in pool.map(self._decoded, range(start, min(start + chunk, n))):
                    budget -= _bytes(found)
                    if budget < 0:
                        return kept
                    kept.append(found)
                    bar.update()
        return kept


def _bytes(decoded: Decoded) -> int:
    pixels: Any = decoded[0]
    return int(pixels.nbytes)
