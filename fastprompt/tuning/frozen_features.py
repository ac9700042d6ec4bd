"""The frozen model's features of the training images, computed once and kept on the device."""

from collections.abc import Callable

import torch
from torch import Tensor

from .._utils.distributed import gather_rows, is_first, own_part
from .._utils.dtypes import at_least_float32
from .._utils.progress import Progress
from ..data.dataset import ImageDataset, batches


@torch.no_grad()
def frozen_features(
    encode: Callable[[Tensor], Tensor],
    data: ImageDataset,
    *,
    device: torch.device,
    batch: int = 128,
    workers: int = 0,
    title: str = "frozen features",
    progress: bool = True,
) -> Tensor:
    """Compute the features ``[N, D]`` of images without augmentation; row i belongs to image i.

    Each tuning step then reads rows of this table instead of encoding its images again. Augmented
    images have no such table: encode them in the step, without a graph. Several processes encode
    their parts of the images.

    Args:
        encode: frozen encoder, maps pixels ``[B, C, H, W]`` in [0, 1] to features ``[B, D]``.
        data: map-style data set of N images.
        device: device on which the images are encoded and the features are kept.
        batch: images encoded at once.
        workers: processes that decode images.
    """
    # without images of its own, a process encodes one for the shape of the features
    own = own_part(torch.arange(len(data)))
    part = (own if len(own) else torch.zeros(1, dtype=torch.int64)).tolist()
    rows = []
    with Progress(len(part), title, "img", show=progress and is_first()) as bar:
        for indices, images, _ in batches(data, part, batch, workers):
            rows.append(at_least_float32(encode(images.to(device))))
            bar.update(len(indices))
    return gather_rows(torch.cat(rows)[: len(own)], len(data))
