"""The model and the images that the checks use."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from ..._utils.dtypes import at_least_float32
from ..._utils.types import Model
from ...attacks import PGD
from ...attacks.ascent import evaluating, mean_gradient
from ...attacks.base import fooled
from ...attacks.losses import margin, targeted_margin
from .passes import Meter, Passes

ASSUMED_EPS = 4 / 255  # if the evaluation has no radius above 0
SAME = 1e-3  # relative tolerance for the same arithmetic in another order
FEW = 5  # passes averaged in the gradients of attacks that are only compared with each other
REPEATS = 20  # passes over which a random model's outcomes are averaged
SIGMAS = 3.0  # one-sided rate of false alarms: 0.13 % per comparison

# how two passes over the same batch compare: equal; equal if their random numbers are seeded alike;
# different even then, as with a generator of the model's own
Noise = Literal["none", "seeded", "free"]


@dataclass(frozen=True)
class Sample:
    """A model and the images on which it is checked.

    Attributes:
        model: maps pixels to logits.
        images, labels, indices: the sample, on the model's device.
        eps: the largest radius of the evaluation.
        seed: seed of the attacks.
        batch: images per pass.
        samples: passes averaged in each gradient, for randomized models.
        surrogates: models on which transfer attacks are crafted.
        meter: counts the passes.
        draw: seeds the random numbers of each pass; None leaves them free.
        known: the model's randomness, if it has been found.
    """

    model: Model
    images: Tensor
    labels: Tensor
    indices: Tensor
    eps: float
    seed: int = 0
    batch: int = 128
    samples: int = 1
    surrogates: Mapping[str, Model] = field(default_factory=dict)
    meter: Meter = field(default_factory=Meter)
    draw: int | None = None
    known: Noise | None = None

    # ---- randomness --------------------------------------------------------------------------

    @property
    def randomized(self) -> bool:
        """Whether the model declares itself random; ``noise`` says whether it is."""
        return bool(getattr(self.model, "randomized", False))

    @cached_property
    def noise(self) -> Noise:
        """How two passes over the same images compare."""
        if self.known is not None:
            return self.known
        if self.changed <= SAME:
            return "none"
        one = replace(self, draw=0, known="none")
        return "seeded" if difference(one.clean, one.logits(one.images)) <= SAME else "free"

    @cached_property
    def changed(self) -> float:
        """Difference between two passes, relative to the logits' spread."""
        return difference(self.clean, self.logits(self.images))

    def fixed(self, draw: int) -> "Sample":
        """Fix the random numbers of a random model, which makes it a deterministic one.

        Its gradient at these numbers can then be compared with its slopes at these numbers. A model
        with random numbers of its own stays random. Every batch must have the same size, since
        random numbers depend on it.
        """
        if self.noise != "seeded":
            return self
        return replace(self, draw=self.seed * 1009 + draw, known="none", samples=1)

    @property
    def averaged(self) -> int:
        """Number of passes averaged in each gradient: 1 if the model is not random."""
        return 1 if self.noise == "none" else self.samples

    @property
    def with_few_samples(self) -> "Sample":
        """Average a random model's gradients over few passes, to compare its own attacks."""
        return replace(self, samples=min(self.samples, FEW), known=self.noise)

    @property
    def repeats(self) -> int:
        """Number of passes over which outcomes are averaged: 1 if the model is not random."""
        return 1 if self.noise == "none" else REPEATS

    def beyond(self, differences: Tensor) -> float:
        """Return the allowance for chance in a sum over images: 3 standard errors, or 0.

        The differences of single images, ``[B]``, pair two averages over a random model's passes.
        """
        n = len(differences)
        if self.noise == "none" or n < 2:
            return 0.0 if self.noise == "none" else float(n)
        student = 1 + 3 / (n - 1)  # about the quantile of Student's t for few images
        return SIGMAS * student * math.sqrt(n) * float(differences.double().std())

    # ---- passes ------------------------------------------------------------------------------

    @cached_property
    def call(self) -> Passes:
        """The model with its passes counted; attacks and checks call this."""
        return Passes(self.model, self.meter, self.draw)

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits, in passes of at most ``batch`` images, without gradients."""
        with torch.no_grad(), evaluating(self.model):
            parts = [at_least_float32(self.call(part)) for part in images.split(self.batch)]
        return torch.cat(parts)

    def rivals(self, images: Tensor) -> Tensor:
        """Return the wrong class with the largest logit, ``[B]``."""
        return self.logits(images).scatter(1, self.labels[:, None], -torch.inf).argmax(dim=1)

    def margins(self, images: Tensor, rivals: Tensor | None = None) -> Tensor:
        """Return the margins, averaged over a random model's passes, float64 ``[B]``.

        ``rivals``, ``[B]``, are the wrong classes to compare with; where their logits are not
        finite, and by default, it is the wrong class with the largest logit.
        """
        every = [self._margin(self.logits(images), rivals).double() for _ in range(self.repeats)]
        return torch.stack(every).mean(dim=0)

    def _margin(self, logits: Tensor, rivals: Tensor | None) -> Tensor:
        best = margin(logits, self.labels)
        if rivals is None:
            return best
        chosen = targeted_margin(logits, self.labels, rivals)
        return torch.where(chosen.isfinite(), chosen, best)

    def gradient(
        self, images: Tensor, loss: Callable[[Tensor, Tensor], Tensor] = margin
    ) -> tuple[Tensor, bool]:
        """Return the loss's gradient in the pixels, and whether the logits have a graph."""
        attached = []

        def loss_of(x: Tensor) -> Tensor:
            logits = at_least_float32(self.call(x))
            attached.append(logits.requires_grad)
            return loss(logits, self.labels).sum()

        with torch.enable_grad(), evaluating(self.model):
            return mean_gradient(self.averaged)(loss_of, images), all(attached)

    @cached_property
    def clean(self) -> Tensor:
        """Logits of the clean images."""
        return self.logits(self.images)

    # ---- images ------------------------------------------------------------------------------

    @cached_property
    def right(self) -> Tensor:
        """Which clean images are classified correctly, bool ``[B]``."""
        return ~fooled(self.clean, self.labels) & ~self.clean.isnan().any(dim=1)

    @property
    def among_right(self) -> "Sample":
        """The correctly classified images, since only those can be attacked."""
        return self.of(self.right.nonzero().flatten().tolist())

    def of(self, places: Sequence[int]) -> "Sample":
        """Return a sample of the images at ``places``."""
        keep = torch.tensor(places, dtype=torch.long, device=self.images.device)
        images, labels, indices = (t[keep] for t in (self.images, self.labels, self.indices))
        return replace(self, images=images, labels=labels, indices=indices, known=self.noise)

    def __len__(self) -> int:
        return len(self.images)

    # ---- attacks -----------------------------------------------------------------------------

    def pgd(self, eps: float, steps: int, *, alpha: float | None = None, **options: Any) -> Tensor:
        """Return PGD's images (last iterates); the default step size is eps/4."""
        attack = PGD(
            self.call,
            eps,
            (eps / 4 or 1 / 255) if alpha is None else alpha,
            steps,
            seed=self.seed,
            batch=self.batch,
            samples=self.averaged,
            **options,
        )
        return attack.run(self.images, self.labels, indices=self.indices).images

    @property
    def may_stop(self) -> bool:
        """Whether a fooled image may leave its attack.

        One pass of a random model may be chance, and fixed random numbers depend on the batch.
        """
        return self.noise == "none" and self.draw is None

    def survival(self, adv: Tensor) -> Tensor:
        """Return the share of passes that classify each adversarial image correctly, ``[B]``."""
        every = []
        for _ in range(self.repeats):
            logits = self.logits(adv)
            every.append(~fooled(logits, self.labels) & ~logits.isnan().any(dim=1))
        return torch.stack(every).double().mean(dim=0)


def difference(a: Tensor, b: Tensor) -> float:
    """Return the largest difference relative to the logits' spread within an image."""
    if not len(a):
        return 0.0
    # equal infinities and NaN do not differ here: `finite` reports them
    same = ((a == b) & a.isinf()) | (a.isnan() & b.isnan())
    a, b = (torch.where(same, 0.0, part) for part in (a, b))
    spread = (a.amax(dim=1) - a.amin(dim=1)).mean().clamp_min(1e-12)
    return float((a - b).abs().amax() / spread)
