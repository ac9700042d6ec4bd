"""What the attacks on labeled images share: how they are called, and what counts as fooled."""

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .._utils.checks import check_count, check_images, check_labels
from .._utils.dtypes import at_least_float32
from .._utils.types import Model
from .ascent import evaluating, module_device
from .result import AttackResult


@dataclass(frozen=True)
class Batch:
    """Attributes:

    images: ``[B, 3, H, W]``, on the model's device, a copy of the caller's.
    labels: int64 ``[B]``: the true classes, or the targets of a targeted attack.
    indices: of the images in their data set, int64 ``[B]``.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def split(self, size: int) -> "list[Batch]":
        """Parts of at most ``size`` images; one part, if there are none."""
        images, labels, indices = (t.split(size) for t in (self.images, self.labels, self.indices))
        parts = zip(images, labels, indices, strict=True)
        return [Batch(x, y, i) for x, y, i in parts]


def fooled(logits: Tensor, labels: Tensor, *, targeted: bool = False) -> Tensor:
    """Which images an untargeted (targeted) attack has won, bool ``[B]``.

    A NaN logit is no prediction: such an image is not fooled, its gradient health tells of it.
    """
    hit = logits.argmax(dim=1) == labels
    return (hit if targeted else ~hit) & ~logits.isnan().any(dim=1)


@torch.no_grad()
def wrong_classes(model: Model, images: Tensor, labels: Tensor, size: int | None = None) -> Tensor:
    """The wrong classes of each image, the likeliest first, ``[B, C - 1]``."""
    parts = images.split(size or max(1, len(images)))
    order = torch.cat([model(x) for x in parts]).argsort(dim=1, descending=True, stable=True)
    return order[order != labels[:, None]].view(len(order), -1)


class Attack(ABC):
    """An attack on a classifier of pixels, called like those of `torchattacks`.

    Args:
        model: pixels ``[B, 3, H, W]`` in [0, 1] to logits ``[B, C]``: a module (attacked in eval
            mode, left as it was) or any callable.
        samples: gradients averaged in each step, for a model that is random.
        stop: an image that is fooled takes no more steps.
        batch: images attacked at once; None takes all that are given.
    """

    targeted: bool = False

    def __init__(
        self, model: Model, *, samples: int = 1, stop: bool = False, batch: int | None = None
    ) -> None:
        if not callable(model):
            raise TypeError(f"model must be callable, got {type(model).__name__}")
        self.model = model
        self.samples = check_count(samples, "samples")
        self.stop = stop
        self.batch = None if batch is None else check_count(batch, "batch")

    def __call__(self, images: Tensor, labels: Tensor, *, indices: Tensor | None = None) -> Tensor:
        """Adversarial images, like `torchattacks`; warns if the model gave no usable gradient."""
        result = self._checked(images, labels, indices, ask=False)
        for reason in result.health.reasons:
            warnings.warn(f"this attack is not to be trusted: {reason}", stacklevel=2)
        return result.images

    def run(self, images: Tensor, labels: Tensor, *, indices: Tensor | None = None) -> AttackResult:
        """Attack images.

        Args:
            images: float32 ``[B, 3, H, W]`` in [0, 1]; not changed. The result is where a module's
                weights are, as in `torchattacks`.
            labels: int64 ``[B]``: the true classes, or the targets in targeted mode.
            indices: the images' indices in their data set, int64 ``[B]``; by default their places
                among those given. They key the random starts: give them, and splitting a batch
                changes no image.

        Raises:
            ValueError, TypeError: images or labels of a wrong shape, dtype or range.
        """
        return self._checked(images, labels, indices, ask=True)

    def _checked(
        self, images: Tensor, labels: Tensor, indices: Tensor | None, *, ask: bool
    ) -> AttackResult:
        check_images(images)
        check_labels(labels, len(images))
        if indices is None:
            indices = torch.arange(len(images), device=images.device)
        elif indices.shape != (len(images),):
            raise ValueError(f"indices must be [{len(images)}], got {list(indices.shape)}")
        with torch.inference_mode(False), torch.enable_grad(), evaluating(self.model):
            where = module_device(self.model, images.device)
            x, labels, indices = (t.detach().clone().to(where) for t in (images, labels, indices))
            return self._attack(Batch(x, labels.long(), indices), ask)

    @abstractmethod
    def _attack(self, batch: Batch, ask: bool) -> AttackResult:
        """Attack a batch; ``ask`` for which images fell, where that costs a pass of its own."""

    @torch.no_grad()
    def won(self, adv: Tensor, labels: Tensor) -> Tensor:
        """Which images the model is fooled by, bool ``[B]``, at most ``batch`` in a pass."""
        if not len(adv):
            return torch.zeros(0, dtype=torch.bool, device=adv.device)
        parts = zip(adv.split(self._size(adv)), labels.split(self._size(adv)), strict=True)
        return torch.cat([self.judge(at_least_float32(self.model(a)), b) for a, b in parts])

    def judge(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Which images are fooled, bool ``[B]``."""
        return fooled(logits, labels, targeted=self.targeted)

    def _size(self, images: Tensor) -> int:
        return self.batch or max(1, len(images))
