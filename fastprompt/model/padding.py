"""Batches filled up to one size, for which compiled or captured code exists."""

import torch
import torch.nn.functional as F
from torch import Tensor

_IGNORED = -100  # label that `F.cross_entropy` ignores


def padded(images: Tensor, size: int | None) -> Tensor:
    """Append copies of the last row of ``[B, ...]``, up to ``size`` rows; None appends nothing."""
    more = 0 if size is None or not len(images) else size - len(images)
    if more <= 0:
        return images
    return torch.cat([images, images[-1:].expand(more, *images.shape[1:])])


def padded_labels(labels: Tensor, size: int | None) -> Tensor:
    """Append labels without a loss or gradient to ``[B]``; see `padded`."""
    more = 0 if size is None or not len(labels) else max(0, size - len(labels))
    return F.pad(labels, (0, more), value=_IGNORED) if more else labels


def cut(images: Tensor, size: int) -> Tensor:
    """Return the first ``size`` rows; without a slice, whose gradient would be copied, if all."""
    return images if len(images) == size else images[:size]
