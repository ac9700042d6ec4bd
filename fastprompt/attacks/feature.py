"""AdvPT's attack on the image encoder alone, without labels, text or prompts."""

from collections.abc import Callable
from typing import get_args

import torch
from torch import Tensor

from .._utils.checks import (
    MOST_STEPS,
    Fraction,
    check_choice,
    check_count,
    check_images,
    check_seed,
    parse_fraction,
    shown,
)
from .._utils.dtypes import at_least_float32
from .ascent import Clamp, ascend, evaluating
from .base import checked_indices
from .health import GradientHealth
from .losses import kl_divergence
from .random_start import Sides, random_start
from .result import AttackResult


class FeaturePGD:
    """PGD that moves the image feature away from its clean value (AdvPT, ECCV 2024).

    Maximizes ``KL(softmax(f(x)) || softmax(f(x_adv)))`` over the D raw, unnormalized feature
    entries. The attack does not use the prompts, so accuracy under it says nothing about accuracy
    under an attack that does.

    Args:
        encode: maps images ``[B, C, H, W]`` in [0, 1] to features ``[B, D]``.
        eps: radius in pixel units, a float or a string such as ``"8/255"``.
        steps: gradient steps.
        alpha: step size; by default ``1.25 * eps / steps``, as the authors use.
        start: range of the uniform random start, as for `random_start`. The clean image is not a
            valid start because the gradient is zero there.
        clamp: when to clamp the pixels to [0, 1]: ``"always"``, at the random start and in each
            step; ``"steps"``, in each step only, as in the authors' code; ``"inputs"``, only in the
            encoder's input and after the last step; ``"end"``, only after the last step.
        seed: seed of the random starts, which depend only on (seed, image index).

    Raises:
        ValueError, TypeError: an argument is out of range or has the wrong type.
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        eps: Fraction = 8 / 255,
        steps: int = 10,
        alpha: Fraction | None = None,
        *,
        start: Sides = "two-sided",
        clamp: Clamp = "always",
        seed: int = 0,
    ) -> None:
        if not callable(encode):
            raise TypeError(f"encode must be callable, got {type(encode).__name__}")
        if start not in ("two-sided", "one-sided"):
            raise ValueError(
                f"start must be 'two-sided' or 'one-sided', got {shown(start)}; "
                "the clean image is no start, since the gradient of this loss is zero there"
            )
        self.encode = encode
        self.eps = parse_fraction(eps, "eps")
        self.steps = check_count(steps, "steps", most=MOST_STEPS)
        default = 1.25 * self.eps / self.steps
        self.alpha = default if alpha is None else parse_fraction(alpha, "alpha")
        self.start: Sides = start
        check_choice(clamp, "clamp", get_args(Clamp))
        self.clamp: Clamp = clamp
        self.seed = check_seed(seed)

    def run(self, images: Tensor, *, indices: Tensor | None = None) -> AttackResult:
        """Attack images, float32 ``[B, C, H, W]`` in [0, 1]; ``indices`` as in `PGD.run`."""
        check_images(images)
        indices = checked_indices(indices, images)
        counts = torch.zeros(len(images), 2, dtype=torch.int64, device=images.device)
        if not len(images):
            health = GradientHealth(counts[:, 0], counts[:, 1], 0)
            return AttackResult(images.detach().clone(), None, health)
        with torch.inference_mode(False), torch.enable_grad(), evaluating(self.encode):
            x, indices = images.detach().clone(), indices.clone()
            start = random_start(
                x,
                self.eps,
                indices,
                seed=self.seed,
                sides=self.start,
                clamp=self.clamp == "always",
            )
            with torch.no_grad():
                clean = at_least_float32(self.encode(x))
            adv = ascend(
                lambda adv: kl_divergence(clean, at_least_float32(self.encode(adv))).sum(),
                x,
                start,
                alpha=self.alpha,
                eps=self.eps,
                steps=self.steps,
                counts=counts,
                clamp=self.clamp,
            )
        entries = self.steps * x[0].numel()
        return AttackResult(adv, None, GradientHealth(counts[:, 0], counts[:, 1], entries))
