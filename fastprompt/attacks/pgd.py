"""Projected gradient descent in the L-inf ball, called like `torchattacks.PGD`."""

import warnings
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .._checks import Fraction, check_count, check_images, check_label_range, check_labels
from .._checks import parse_fraction as parse
from .._dtypes import at_least_float32
from .ascent import ascend, evaluating, module_device
from .health import GradientHealth
from .random_start import random_start
from .result import AttackResult

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each image, ``[B]``."""
    return F.cross_entropy(logits, labels, reduction="none")


class PGD:
    """PGD (Madry et al., ICLR 2018): ``steps`` sign steps of ``alpha`` in the eps-ball.

    With ``random_start=False`` its images are `torchattacks.PGD`'s, bit for bit in float32: at any
    batch size with ``reduction="mean"``, at powers of two with ``"sum"``. The last iterate counts;
    with restarts, any restart that succeeds.

    Args:
        model: pixels ``[B, 3, H, W]`` in [0, 1] to logits ``[B, C]``: a module (attacked in eval
            mode, left as it was) or any callable.
        eps: radius in pixel units, a float or such as ``"8/255"``; 0 leaves the images alone.
        alpha: step size in pixel units, likewise.
        steps: gradient steps.
        random_start: start from a uniform point of the ball instead of the image.
        targeted: take the labels as targets, and lower their loss.
        loss: per-image loss ``(logits [B, C], labels [B]) -> [B]``; cross-entropy by default.
        restarts: random starts tried; needs ``random_start``.
        reduction: ``"sum"`` over the batch, or ``"mean"`` as `torchattacks` has it.
        stop_every: look at the images every so many steps: one that is fooled keeps what fooled it
            and takes no more steps. At least as strong, and faster; by default never.
        seed: of the random starts, which depend on (seed, image index, restart) alone.

    Raises:
        ValueError, TypeError: an argument out of its range.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: Fraction = 8 / 255,
        alpha: Fraction = 2 / 255,
        steps: int = 10,
        random_start: bool = True,
        *,
        targeted: bool = False,
        loss: Loss = cross_entropy,
        restarts: int = 1,
        reduction: Literal["sum", "mean"] = "sum",
        stop_every: int | None = None,
        seed: int = 0,
    ) -> None:
        if not callable(model):
            raise TypeError(f"model must be callable, got {type(model).__name__}")
        if not callable(loss):
            raise TypeError(f"loss must be callable, got {loss!r}")
        if reduction not in ("sum", "mean"):
            raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")
        self.model = model
        self.eps = parse(eps, "eps", zero=True)
        self.alpha = parse(alpha, "alpha")
        self.steps = check_count(steps, "steps")
        self.random_start = random_start
        self.targeted = targeted
        self.loss = loss
        self.restarts = check_count(restarts, "restarts")
        if restarts > 1 and not random_start:
            raise ValueError("restarts above 1 need random_start=True: all would be alike")
        self.reduction = reduction
        self.stop_every = None if stop_every is None else check_count(stop_every, "stop_every")
        self.seed = seed

    def __repr__(self) -> str:
        return (
            f"PGD(eps={self.eps * 255:g}/255, alpha={self.alpha * 255:g}/255, steps={self.steps}, "
            f"random_start={self.random_start}, restarts={self.restarts}, "
            f"stop_every={self.stop_every}, seed={self.seed})"
        )

    def __call__(self, images: Tensor, labels: Tensor, *, indices: Tensor | None = None) -> Tensor:
        """Adversarial images, like `torchattacks`; warns if the model gave no usable gradient."""
        # with one restart nobody asks which images fell: that forward pass is saved
        result = self._checked_run(images, labels, indices, judge=self.restarts > 1)
        for reason in result.health.reasons:
            warnings.warn(f"this attack is not to be trusted: {reason}", stacklevel=2)
        return result.images

    def run(self, images: Tensor, labels: Tensor, *, indices: Tensor | None = None) -> AttackResult:
        """Attack a batch.

        Args:
            images: float32 ``[B, 3, H, W]`` in [0, 1]; not changed. The result is where a module's
                weights are, as in `torchattacks`.
            labels: int64 ``[B]``: the true classes, or the targets in targeted mode.
            indices: the images' indices in their data set, int64 ``[B]``; by default their places
                in the batch. They key the random starts: give them, and splitting a batch changes
                no image.

        Raises:
            ValueError, TypeError: images or labels of a wrong shape, dtype or range.
        """
        return self._checked_run(images, labels, indices, judge=True)

    def _checked_run(
        self, images: Tensor, labels: Tensor, indices: Tensor | None, *, judge: bool
    ) -> AttackResult:
        check_images(images)
        largest = check_labels(labels, len(images))
        if indices is None:
            indices = torch.arange(len(images), device=images.device)
        elif indices.shape != (len(images),):
            raise ValueError(f"indices must be [{len(images)}], got {list(indices.shape)}")
        with torch.inference_mode(False), torch.enable_grad(), evaluating(self.model):
            where = module_device(self.model, images.device)
            x, labels, indices = (t.detach().clone().to(where) for t in (images, labels, indices))
            return self._run(x, labels, indices, largest, judge)

    def _run(
        self, x: Tensor, labels: Tensor, indices: Tensor, largest: int, judge: bool
    ) -> AttackResult:
        counts = torch.zeros(len(x), 2, dtype=torch.int64, device=x.device)
        adv, success = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for restart in range(self.restarts if len(x) else 0):
            tried = self._once(x, labels, indices, largest, restart, counts)
            # an image that fell in an earlier restart keeps the perturbation that felled it
            adv = torch.where(success[:, None, None, None], adv, tried)
            if judge:
                with torch.no_grad():
                    success |= self._succeeds(self.model(tried), labels)
        entries = self.steps * self.restarts * (x[0].numel() if len(x) else 0)
        health = GradientHealth(counts[:, 0], counts[:, 1], entries)
        return AttackResult(adv, success if judge else None, health)

    def _once(
        self,
        x: Tensor,
        labels: Tensor,
        indices: Tensor,
        largest: int,
        restart: int,
        counts: Tensor,
    ) -> Tensor:
        start = x
        if self.random_start:
            start = random_start(
                x, self.eps, indices, seed=self.seed, restart=restart, sides="two-sided"
            )
        if self.stop_every is None:
            return self._climb(x, start, labels, largest, self.steps, counts)
        return self._until_fooled(x, start, labels, largest, self.stop_every, counts)

    def _climb(
        self, x: Tensor, start: Tensor, labels: Tensor, largest: int, steps: int, counts: Tensor
    ) -> Tensor:
        def loss_of(images: Tensor) -> Tensor:
            logits = self.model(images)
            if logits.ndim != 2 or len(logits) != len(images):
                raise ValueError(
                    f"model must give logits [{len(images)}, C], got {list(logits.shape)}"
                )
            check_label_range(largest, logits.shape[1])
            loss = self.loss(at_least_float32(logits), labels)
            return loss.mean() if self.reduction == "mean" else loss.sum()

        return ascend(
            loss_of,
            x,
            start,
            alpha=self.alpha,
            eps=self.eps,
            steps=steps,
            counts=counts,
            targeted=self.targeted,
        )

    def _until_fooled(
        self, x: Tensor, start: Tensor, labels: Tensor, largest: int, every: int, counts: Tensor
    ) -> Tensor:
        """`_climb`, ``every`` steps at a time, with those images that are not fooled yet."""
        adv, standing = start.clone(), torch.arange(len(x), device=x.device)
        for done in range(0, self.steps, every):
            own, steps = counts[standing], min(every, self.steps - done)
            those = labels[standing]
            tried = self._climb(x[standing], adv[standing], those, largest, steps, own)
            adv[standing], counts[standing] = tried, own
            with torch.no_grad():
                fooled = self._succeeds(self.model(tried), those)
            standing = standing[~fooled]
            if not len(standing):
                break
        return adv

    def _succeeds(self, logits: Tensor, labels: Tensor) -> Tensor:
        # a NaN logit is no prediction: such an image is not counted as fooled, its gradient health
        # tells of it
        hit = logits.argmax(dim=1) == labels
        hit = hit if self.targeted else ~hit
        return hit & ~logits.isnan().any(dim=1)
