"""Base class of the attacks on labeled images, and the criterion for a fooled image."""

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .._utils.checks import MOST_STEPS, check_count, check_flag, check_images, check_labels
from .._utils.dtypes import at_least_float32
from .._utils.types import Model
from .ascent import evaluating, module_device
from .result import AttackResult


@dataclass(frozen=True)
class Batch:
    """A batch of labeled images.

    Attributes:
        images: ``[B, C, H, W]``, on the model's device, a copy of the caller's images.
        labels: int64 ``[B]``: the true classes, or the targets of a targeted attack.
        indices: indices of the images in their data set, int64 ``[B]``.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def split(self, size: int) -> "list[Batch]":
        """Split into batches of at most ``size`` images; an empty batch gives one empty batch."""
        images, labels, indices = (t.split(size) for t in (self.images, self.labels, self.indices))
        parts = zip(images, labels, indices, strict=True)
        return [Batch(x, y, i) for x, y, i in parts]


def fooled(logits: Tensor, labels: Tensor, *, targeted: bool = False) -> Tensor:
    """Return the images on which an untargeted (or targeted) attack succeeded, bool ``[B]``.

    An image with a NaN logit has no prediction and is not counted as fooled; the gradient health
    reports it.
    """
    hit = logits.argmax(dim=1) == labels
    return (hit if targeted else ~hit) & ~logits.isnan().any(dim=1)


@torch.no_grad()
def wrong_classes(model: Model, images: Tensor, labels: Tensor, size: int | None = None) -> Tensor:
    """Return the wrong classes of each image, the most likely first, ``[B, C - 1]``."""
    parts = images.split(size or max(1, len(images)))
    return wrong_order(torch.cat([model(x) for x in parts]), labels)


def wrong_order(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the wrong classes of each image by decreasing logit, ``[B, C - 1]``."""
    order = logits.argsort(dim=1, descending=True, stable=True)
    # a mask as the index would make the host wait for the device
    places = (order == labels[:, None]).int().argsort(dim=1, stable=True)[:, :-1]
    return order.gather(1, places)


def checked_indices(indices: Tensor | None, images: Tensor) -> Tensor:
    """Return the images' indices in their data set, by default their positions."""
    if indices is None:
        return torch.arange(len(images), device=images.device)
    check_labels(indices, len(images), name="indices")
    return indices


class Attack(ABC):
    """Base class of attacks on image classifiers, called like those of `torchattacks`.

    Args:
        model: module or callable that maps images ``[B, C, H, W]`` in [0, 1] to logits
            ``[B, C]``; a module is attacked in eval mode, and its mode is restored afterwards.
        samples: gradients averaged in each step, for randomized models.
        stop: if True, a fooled image takes no more steps.
        batch: images attacked at once; None attacks all given images at once.
    """

    targeted: bool = False

    def __init__(
        self, model: Model, *, samples: int = 1, stop: bool = False, batch: int | None = None
    ) -> None:
        if not callable(model):
            raise TypeError(f"model must be callable, got {type(model).__name__}")
        self.model = model
        self.samples = check_count(samples, "samples", most=MOST_STEPS)
        self.stop = check_flag(stop, "stop")
        self.batch = None if batch is None else check_count(batch, "batch")

    def __call__(self, images: Tensor, labels: Tensor, *, indices: Tensor | None = None) -> Tensor:
        """Return adversarial images, as `torchattacks` does; warn if gradients were unusable."""
        result = self._checked(images, labels, indices, ask=False)
        for reason in result.health.reasons:
            warnings.warn(f"this attack's result is not trustworthy: {reason}", stacklevel=2)
        return result.images

    def run(self, images: Tensor, labels: Tensor, *, indices: Tensor | None = None) -> AttackResult:
        """Attack images.

        Args:
            images: float32 ``[B, C, H, W]`` in [0, 1]; not modified. The result is on the device
                of the module's weights, as in `torchattacks`.
            labels: int64 ``[B]``: the true classes, or the targets in targeted mode.
            indices: indices of the images in their data set, int64 ``[B]``; by default their
                positions in ``images``. The random starts depend on them: if given, the result
                does not depend on how the data set is split into batches.

        Raises:
            ValueError, TypeError: images or labels have a wrong shape, dtype or range.
        """
        return self._checked(images, labels, indices, ask=True)

    def _checked(
        self, images: Tensor, labels: Tensor, indices: Tensor | None, *, ask: bool
    ) -> AttackResult:
        check_images(images)
        check_labels(labels, len(images))
        indices = checked_indices(indices, images)
        with torch.inference_mode(False), torch.enable_grad(), evaluating(self.model):
            where = module_device(self.model, images.device)
            x, labels, indices = (t.detach().clone().to(where) for t in (images, labels, indices))
            return self._attack(Batch(x, labels.long(), indices), ask)

    @abstractmethod
    def _attack(self, batch: Batch, ask: bool) -> AttackResult:
        """Attack a batch; ``ask`` requests `success` even if it takes a separate pass."""

    @torch.no_grad()
    def won(self, adv: Tensor, labels: Tensor) -> Tensor:
        """Return which images fool the model, bool ``[B]``, in passes of at most ``batch``."""
        if not len(adv):
            return torch.zeros(0, dtype=torch.bool, device=adv.device)
        parts = zip(adv.split(self._size(adv)), labels.split(self._size(adv)), strict=True)
        return torch.cat([self.judge(at_least_float32(self.model(a)), b) for a, b in parts])

    def judge(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return which images are fooled, bool ``[B]``."""
        return fooled(logits, labels, targeted=self.targeted)

    def _size(self, images: Tensor) -> int:
        return self.batch or max(1, len(images))
