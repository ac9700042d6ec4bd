"""Per-image losses ``[B]`` that an attack maximizes, computed from logits ``[B, C]``.

A targeted loss takes target classes ``[B]`` in addition; its labels are the true classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_TINY = 1e-12  # from the DLR authors; avoids division by zero if all logits are equal


def kl_divergence(clean: Tensor, adv: Tensor) -> Tensor:
    """Compute ``KL(softmax(clean) || softmax(adv))`` of logits or raw features, ``[B]``."""
    log_adv, log_clean = F.log_softmax(adv, dim=-1), F.log_softmax(clean, dim=-1)
    return F.kl_div(log_adv, log_clean, reduction="none", log_target=True).sum(dim=-1)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the cross-entropy of each image, ``[B]``."""
    return F.cross_entropy(logits, labels, reduction="none")


def _of(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None]).squeeze(1)


def _best_other(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the margin ``max_{j != y} z_j - z_y``; it is positive if the image is fooled.

    Carlini and Wagner, "Towards evaluating the robustness of neural networks", S&P 2017, f_6
    without its cut-off.
    """
    return _best_other(logits, labels) - _of(logits, labels)


def targeted_margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Compute the targeted margin ``z_t - z_y``."""
    return _of(logits, targets) - _of(logits, labels)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the difference of logits ratio, ``-(z_y - max_{j != y} z_j) / (z_(1) - z_(3))``.

    Croce and Hein, ICML 2020, equation 6. Requires at least 3 classes. The loss is invariant to
    shifts and scaling of the logits.
    """
    top = logits.topk(3, dim=1).values
    return margin(logits, labels) / (top[:, 0] - top[:, 2] + _TINY)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Compute the targeted DLR loss, ``-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2)``.

    Equation 7 of the same paper. Requires at least 4 classes.
    """
    top = logits.topk(4, dim=1).values
    below = top[:, 0] - 0.5 * top[:, 2] - 0.5 * top[:, 3]
    return targeted_margin(logits, labels, targets) / (below + _TINY)
