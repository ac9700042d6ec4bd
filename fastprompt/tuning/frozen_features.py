"""The frozen model's features of the training images, computed once and kept on the device."""

from collections.abc import Callable

import torch
from torch import Tensor

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
    images have no such table: encode them in the step, without a graph.

    Args:
        encode: frozen encoder, maps pixels ``[B, C, H, W]`` in [0, 1] to features ``[B, D]``.
        data: map-style data set of N images.
        device: device on which the images are encoded and the features are kept.
        batch: images encoded at once.
        workers: processes that decode images.
    """
    rows = []
    with Progress(len(data), title, "img", show=progress) as bar:
        for indices, images, _ in batches(data, range(len(data)), batch, workers):
            rows.append(at_least_float32(encode(images.to(device))))
            bar.update(len(indices))
    return torch.cat(rows)
