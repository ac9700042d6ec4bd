"""The attack inside a tuning step: PGD against the prompts as they are at that step."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .._utils.checks import Fraction, check_count, check_images
from .._utils.checks import parse_fraction as parse
from ..attacks.health import GradientHealth
from ..attacks.random_start import random_start as draw_start
from ..attacks.result import AttackResult
from ..model.outputs import Prepared
from ..model.prompted import PromptedCLIP
from .cuda_graph import CapturedAscent


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
        random_start: start from a uniform point of the ball instead of the image.
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
        random_start: bool = True,
        seed: int = 0,
        capture: bool = True,
    ) -> None:
        if not hasattr(model, "attack_loss"):
            raise TypeError(f"model must be a PromptedCLIP, got {type(model).__name__}: use PGD")
        self.model = model
        self.eps = parse(eps, "eps", zero=True)
        self.alpha = parse(alpha, "alpha")
        self.steps = check_count(steps, "steps")
        self.random_start, self.seed = random_start, seed
        self._ascent = CapturedAscent(
            model.attack_loss,
            model.attack_reads,
            alpha=self.alpha,
            eps=self.eps,
            steps=self.steps,
            capture=capture,
        )

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        indices: Tensor,
        prepared: Prepared | None = None,
        *,
        draw: int = 0,
        radius: Tensor | None = None,
    ) -> AttackResult:
        """Attack a batch.

        Args:
            images: float32 ``[B, 3, S, S]`` in [0, 1], on the model's device. Values are not
                checked: looking at them waits for the device.
            labels: int64 ``[B]``.
            indices: the images' indices in their data set, int64 ``[B]``.
            prepared: from `PromptedCLIP.prepare`, which the step's loss shares; by default
                computed here. The reference engine computes its own in every step.
            draw: which random start of an image: the epoch, say.
            radius: each image's own in place of eps, float ``[B]``, at most eps; its steps are as
                much smaller than alpha.

        Raises:
            ValueError, TypeError: images, labels, indices or radius of a wrong shape or dtype.
        """
        check_images(images, values=False)
        for name, tensor in (("labels", labels), ("indices", indices), ("radius", radius)):
            if tensor is not None and tensor.shape != (len(images),):
                raise ValueError(f"{name} must be [{len(images)}], got {list(tensor.shape)}")
        x = images.detach()
        start = x
        if self.random_start:
            eps = self.eps if radius is None else radius
            start = draw_start(x, eps, indices, seed=self.seed, restart=draw, sides="two-sided")
        with torch.enable_grad():
            if self.model.engine == "reference":
                adv, counts = self._through_everything(x, start, labels, radius)
            else:
                with self.model.frozen_prompts():
                    fixed = (prepared or self.model.prepare()).detached()
                    adv, counts = self._ascent(x, start, labels, *fixed, radius=radius)
        entries = self.steps * images[0].numel() if len(images) else 0
        return AttackResult(adv, None, GradientHealth(counts[:, 0], counts[:, 1], entries))

    def _through_everything(
        self, x: Tensor, start: Tensor, labels: Tensor, radius: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        learning = [p for p in self.model.prompts.parameters() if p.requires_grad]

        def loss_of(images: Tensor) -> Tensor:
            logits = self.model(images)
            return F.cross_entropy(logits, labels, reduction="sum")

        def gradient(loss_of: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
            images = images.detach().requires_grad_(True)
            # as `loss.backward()` does: also into the prompts, where nobody reads it
            return torch.autograd.grad(loss_of(images), [images, *learning], allow_unused=True)[0]

        ascent = CapturedAscent(
            loss_of,
            alpha=self.alpha,
            eps=self.eps,
            steps=self.steps,
            capture=False,
            gradient=gradient,
        )
        return ascent(x, start, radius=radius)
