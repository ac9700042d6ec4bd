"""Logits and predictions of a classifier, and confidence intervals of its accuracy."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.checks import check_labels
from .._utils.types import Model
from ..attacks.ascent import evaluating


def wilson(correct: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion, 95 % by default (Wilson, JASA 1927)."""
    if n == 0:
        return 0.0, 1.0
    share = correct / n
    center = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    below = 1 + z * z / n
    return max(0.0, (center - spread) / below), min(1.0, (center + spread) / below)


@torch.no_grad()
def logits_of(model: Model, images: Tensor, classes: int | None = None) -> Tensor:
    """Return the model's logits ``[B, C]``, in eval mode.

    Raises:
        ValueError: wrong shape or device, not ``classes`` logits, or probabilities.
    """
    with evaluating(model):
        logits = model(images)
    shaped = isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == len(images)
    if not shaped or logits.shape[1] < 2:
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"model must return logits [{len(images)}, C], C at least 2, got {got}")
    if logits.device != images.device:
        raise ValueError(
            f"model returned logits on {logits.device} for images on {images.device}; move the "
            "model, or set device"
        )
    if classes is not None and logits.shape[1] != classes:
        raise ValueError(
            f"model returned {logits.shape[1]} logits per image, but the data has {classes} "
            "classes; load the data with the model's classes"
        )
    if are_probabilities(logits):
        raise ValueError(
            "model returned probabilities (each image's outputs sum to 1); return the logits "
            "before the softmax, since a softmax weakens the attacks"
        )
    return logits


def are_probabilities(logits: Tensor) -> bool:
    """Return whether all rows are in [0, 1] and sum to 1."""
    if logits.shape[1] < 2 or not len(logits):
        return False
    wide = logits.double()
    inside = bool((wide >= 0).all()) and bool((wide <= 1).all())
    return inside and bool(((wide.sum(dim=1) - 1).abs() < 1e-2).all())


def verdicts(
    model: Model, images: Tensor, labels: Tensor, classes: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return which images are classified correctly, bool ``[B]``, and the predictions.

    An image with a NaN logit has prediction -1. Raises as `logits_of` does, and ValueError for a
    label outside the classes.
    """
    logits = logits_of(model, images, classes)
    check_labels(labels, len(images), logits.shape[1])
    predictions = torch.where(logits.isnan().any(dim=1), -1, logits.argmax(dim=1))
    return predictions == labels, predictions


def facts(model: Any) -> dict[str, Any]:
    """Return the engine, precision and defenses that a classifier reports."""
    known = {k: getattr(model, k) for k in ("engine", "precision") if hasattr(model, k)}
    if hasattr(model, "defenses"):
        known["defenses"] = [str(defense) for defense in model.defenses]
    return known


class Counted(nn.Module):
    """A model wrapper that counts the images in forward and in backward passes.

    Args:
        tell: called with the number of passes after each forward pass, such as by a progress bar.
    """

    def __init__(self, model: Model, tell: Callable[[int], None] | None = None) -> None:
        super().__init__()
        self.model, self.tell = model, tell
        self.forwards = self.gradients = 0

    @property
    def passes(self) -> int:
        """Forward and backward passes together, in images."""
        return self.forwards + self.gradients

    def forward(self, images: Tensor) -> Tensor:
        return self.counting(self.model)(images)

    def counting(self, call: Model) -> Model:
        """Wrap a part of the model, such as its image encoder, to count its passes too."""

        def counted(images: Tensor) -> Tensor:
            out = call(images)
            self.forwards += len(images)
            if self.tell is not None:
                self.tell(self.passes)
            if isinstance(out, Tensor) and out.requires_grad:
                out.register_hook(self._back)
            return out

        return counted

    def _back(self, grad: Tensor) -> None:
        self.gradients += len(grad)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(self.model, name)
