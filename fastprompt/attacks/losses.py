"""What an attack raises: losses of each image, ``[B]``, from logits ``[B, C]``.

A targeted loss takes the target classes ``[B]`` as well; the labels stay the true ones.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_TINY = 1e-12  # of the authors of DLR: logits that are all alike


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each image, ``[B]``."""
    return F.cross_entropy(logits, labels, reduction="none")


def _of(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None]).squeeze(1)


def _best_other(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """``max_{j != y} z_j - z_y``: above 0 where the image is fooled.

    Carlini and Wagner, "Towards evaluating the robustness of neural networks", S&P 2017, f_6
    without its cut-off.
    """
    return _best_other(logits, labels) - _of(logits, labels)


def targeted_margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """``z_t - z_y``."""
    return _of(logits, targets) - _of(logits, labels)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio, ``-(z_y - max_{j != y} z_j) / (z_(1) - z_(3))``.

    Croce and Hein, ICML 2020, equation 6; for 3 classes or more. Neither shift nor scale of the
    logits changes it.
    """
    top = logits.topk(3, dim=1).values
    return margin(logits, labels) / (top[:, 0] - top[:, 2] + _TINY)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """``-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2)``: 4 classes or more. Equation 7 there."""
    top = logits.topk(4, dim=1).values
    below = top[:, 0] - 0.5 * top[:, 2] - 0.5 * top[:, 3]
    return targeted_margin(logits, labels, targets) / (below + _TINY)
