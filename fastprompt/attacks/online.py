"""The attack inside a tuning step: PGD against the prompts as they are at that step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .._checks import Fraction, check_count
from .._checks import parse_fraction as parse
from .ascent import ascend
from .capture import CapturedAscent
from .health import GradientHealth
from .random_start import random_start
from .result import AttackResult

if TYPE_CHECKING:
    from ..prompted import Prepared, PromptedCLIP


class OnlinePGD:
    """Fresh adversarial images for each tuning step; cross-entropy, white-box through the prompts.

    On the fast engine the class features are computed once, without a graph, and each step takes
    the gradient in the pixels alone. Nothing waits for the device; on a GPU the steps are one
    CUDA graph. The reference engine does what published code does: the text encoder runs inside
    each step, forward and backward.

    Args:
        model: the prompts in their CLIP.
        eps: radius in pixel units, a float or such as ``"4/255"``.
        alpha: step size in pixel units, likewise.
        steps: gradient steps.
        start: start from a uniform point of the ball instead of the image.
        seed: of the random starts, which depend on (seed, image index, draw) alone.
        capture: False never captures a CUDA graph.

    Raises:
        ValueError, TypeError: an argument out of its range.
    """

    def __init__(
        self,
        model: PromptedCLIP,
        eps: Fraction = 4 / 255,
        alpha: Fraction = 1 / 255,
        steps: int = 3,
        *,
        start: bool = True,
        seed: int = 0,
        capture: bool = True,
    ) -> None:
        self.model = model
        self.eps = parse(eps, "eps", zero=True)
        self.alpha = parse(alpha, "alpha")
        self.steps = check_count(steps, "steps")
        self.start, self.seed = start, seed
        self._ascent = CapturedAscent(
            model.attack_loss, alpha=self.alpha, eps=self.eps, steps=self.steps, capture=capture
        )

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        indices: Tensor,
        prepared: Prepared | None = None,
        *,
        draw: int = 0,
    ) -> AttackResult:
        """Attack a batch.

        Args:
            images: float32 ``[B, 3, S, S]`` in [0, 1], on the model's device; not checked.
            labels: int64 ``[B]``.
            indices: the images' indices in their data set, int64 ``[B]``.
            prepared: from `PromptedCLIP.prepare`, which the step's loss shares; by default
                computed here. The reference engine computes its own in every step.
            draw: which random start of an image: the epoch, say.
        """
        x = images.detach()
        start = x
        if self.start:
            start = random_start(
                x, self.eps, indices, seed=self.seed, restart=draw, sides="two-sided"
            )
        with torch.enable_grad():
            if self.model.engine == "reference":
                adv, counts = self._through_everything(x, start, labels)
            else:
                with self.model.frozen_prompts():
                    fixed = (prepared or self.model.prepare()).detached()
                    adv, counts = self._ascent(x, start, labels, *fixed)
        entries = self.steps * images[0].numel() if len(images) else 0
        return AttackResult(adv, None, GradientHealth(counts[:, 0], counts[:, 1], entries))

    def _through_everything(
        self, x: Tensor, start: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        learning = [p for p in self.model.prompts.parameters() if p.requires_grad]

        def loss_of(images: Tensor) -> Tensor:
            logits = self.model(images)
            return F.cross_entropy(logits, labels, reduction="sum")

        def gradient(loss_of: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
            images = images.detach().requires_grad_(True)
            # as `loss.backward()` does: also into the prompts, where nobody reads it
            return torch.autograd.grad(loss_of(images), [images, *learning], allow_unused=True)[0]

        counts = torch.zeros(len(x), 2, dtype=torch.int64, device=x.device)
        adv = ascend(
            loss_of,
            x,
            start,
            alpha=self.alpha,
            eps=self.eps,
            steps=self.steps,
            counts=counts,
            gradient=gradient,
        )
        return adv, counts
