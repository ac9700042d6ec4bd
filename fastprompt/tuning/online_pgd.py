"""The attack inside a tuning step: PGD against the current prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor

from .._utils.checks import (
    MOST_STEPS,
    Fraction,
    check_choice,
    check_count,
    check_flag,
    check_images,
    check_seed,
)
from .._utils.checks import parse_fraction as parse
from ..attacks.ascent import Clamp
from ..attacks.health import GradientHealth
from ..attacks.random_start import random_start as draw_start
from ..attacks.result import AttackResult
from ..model.outputs import Prepared
from ..model.padding import padded, padded_labels
from ..model.prompted import PromptedCLIP
from .attack_loss import (
    AttackLoss,
    Goal,
    attack_losses,
    check_attack_loss,
    check_enough_classes,
    goal_of,
    needs_clean_logits,
)
from .cuda_graph import CapturedAscent


class OnlinePGD:
    """White-box PGD through the current prompts, for each tuning step.

    On the fast engine, the class features are computed once, without a graph, and each gradient
    step differentiates with respect to the pixels only. No operation synchronizes with the device;
    on a GPU, all steps run as one CUDA graph. The reference engine does what published code does:
    the text encoder runs forward and backward in each gradient step.

    Args:
        model: CLIP model with the prompts to attack.
        eps: radius in pixel units: a float, or a string such as ``"4/255"``.
        alpha: step size in pixel units, in the same formats as ``eps``.
        steps: gradient steps.
        attack_loss: loss that the steps increase, summed over the images: ``"ce"``, the
            cross-entropy; ``"margin"``, the largest wrong logit minus the true one; ``"dlr"`` and
            ``"targeted-dlr"``, the losses of APGD-DLR and APGD-T, the latter with one target per
            image, drawn from the 9 wrong classes with the largest clean logits; ``"kl"``, the
            divergence KL(p(clean) || p(adv)) of TRADES, which needs a random start; ``"mixed"``,
            one of the first four for each image. Where the true class ranks third, ``"dlr"`` is the
            margin: DLR is constant there. ``"targeted-dlr"``, ``"kl"`` and ``"mixed"`` run the
            model once more, on the clean images, without gradients.
        random_start: start at a uniformly random point of the ball, instead of at the clean image.
        clamp: when to clamp the pixels to [0, 1]: ``"always"``, at the random start and in each
            step; ``"steps"``, in each step only; ``"inputs"``, only in the model's input and after
            the last step; ``"end"``, only after the last step.
        seed: seed of the random starts, targets and mixed losses, which depend only on (seed,
            image index, draw).
        capture: if False, never capture a CUDA graph.

    Raises:
        ValueError, TypeError: an argument has an invalid value or type, or the model has too few
            classes for ``attack_loss``: ``"margin"`` and ``"kl"`` need 2, ``"dlr"`` 3,
            ``"targeted-dlr"`` and ``"mixed"`` 4.
    """

    def __init__(
        self,
        model: PromptedCLIP,
        eps: Fraction = 4 / 255,
        alpha: Fraction = 1 / 255,
        steps: int = 3,
        *,
        attack_loss: AttackLoss = "ce",
        random_start: bool = True,
        clamp: Clamp = "always",
        seed: int = 0,
        capture: bool = True,
    ) -> None:
        if not hasattr(model, "attack_loss"):
            raise TypeError(f"model must be a PromptedCLIP, got {type(model).__name__}: use PGD")
        self.model = model
        self.eps = parse(eps, "eps", zero=True)
        self.alpha = parse(alpha, "alpha")
        self.steps = check_count(steps, "steps", most=MOST_STEPS)
        self.random_start, self.seed = check_flag(random_start, "random_start"), check_seed(seed)
        check_choice(clamp, "clamp", get_args(Clamp))
        self.clamp: Clamp = clamp
        self.attack_loss = check_attack_loss(attack_loss, random_start=random_start)
        if attack_loss != "ce":
            check_enough_classes(attack_loss, len(model.classnames))
        self._ascent = CapturedAscent(
            model.attack_loss if attack_loss == "ce" else _loss_of(model, attack_loss),
            model.attack_reads,
            alpha=self.alpha,
            eps=self.eps,
            steps=self.steps,
            clamp=clamp,
            capture=check_flag(capture, "capture"),
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
            images: float32 ``[B, C, H, W]`` in [0, 1], on the model's device. The values are not
                checked, because a check would synchronize with the device.
            labels: class indices, int64 ``[B]``.
            indices: indices of the images in their data set, int64 ``[B]``.
            prepared: result of `PromptedCLIP.prepare`, to share it with the step's loss; by default
                computed here. The reference engine does not use it.
            draw: index that varies the random start and the draws of ``attack_loss``, e.g. the
                epoch.
            radius: radius per image instead of eps, float ``[B]``, at most eps; alpha is scaled by
                ``radius / eps``.

        Raises:
            ValueError, TypeError: images, labels, indices or radius have a wrong shape or dtype.
        """
        check_images(images, values=False)
        for name, tensor in (("labels", labels), ("indices", indices), ("radius", radius)):
            if tensor is not None and tensor.shape != (len(images),):
                raise ValueError(
                    f"{name} must have shape [{len(images)}], got {list(tensor.shape)}"
                )
        x = images.detach()
        start = x
        if self.random_start:
            eps = self.eps if radius is None else radius
            start = draw_start(
                x,
                eps,
                indices,
                seed=self.seed,
                restart=draw,
                sides="two-sided",
                clamp=self.clamp == "always",
            )
        with torch.enable_grad():
            if self.model.engine == "reference":
                goal = self._goal(x, labels, indices, None, draw)
                adv, counts = self._through_everything(x, start, goal, radius)
            else:
                with self.model.frozen_prompts():
                    prepared = prepared or self.model.prepare()
                    goal = self._goal(x, labels, indices, prepared, draw)
                    adv, counts = self._fast(x, start, goal, prepared.detached(), radius)
        entries = self.steps * images[0].numel() if len(images) else 0
        return AttackResult(adv, None, GradientHealth(counts[:, 0], counts[:, 1], entries))

    @torch.no_grad()
    def _goal(
        self, x: Tensor, labels: Tensor, indices: Tensor, prepared: Prepared | None, draw: int
    ) -> Goal:
        needed = needs_clean_logits(self.attack_loss)
        clean = self.model.see(x, prepared).logits if needed else None
        return goal_of(self.attack_loss, labels, indices, clean, seed=self.seed, draw=draw)

    def _fast(
        self,
        x: Tensor,
        start: Tensor,
        goal: Goal,
        fixed: tuple[Any, ...],
        radius: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Attack with code that may be compiled or captured for one size of batches."""
        one_size = self.model.compiled or not self._ascent.obstacle(x)
        size = self.model.batch if one_size else None
        n, x, start = len(x), padded(x, size), padded(start, size)
        if radius is not None:
            radius = padded(radius, size)
        if self.attack_loss == "ce":
            aim: Tensor | Goal = padded_labels(goal.labels, size)
        else:
            aim = Goal._make(None if t is None else padded(t, size) for t in goal)
        adv, counts = self._ascent(x, start, aim, *fixed, radius=radius)
        return adv[:n], counts[:n]

    def _through_everything(
        self, x: Tensor, start: Tensor, goal: Goal, radius: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        learning = [p for p in self.model.prompts.parameters() if p.requires_grad]

        def loss_of(images: Tensor) -> Tensor:
            return attack_losses(self.attack_loss, self.model(images), goal).sum()

        def gradient(loss_of: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
            images = images.detach().requires_grad_(True)
            # like `loss.backward()`, also computes the prompts' gradients, which are not used
            return torch.autograd.grad(loss_of(images), [images, *learning], allow_unused=True)[0]

        ascent = CapturedAscent(
            loss_of,
            alpha=self.alpha,
            eps=self.eps,
            steps=self.steps,
            clamp=self.clamp,
            capture=False,
            gradient=gradient,
        )
        return ascent(x, start, radius=radius)


def _loss_of(model: PromptedCLIP, name: AttackLoss) -> Callable[..., Tensor]:
    """Return the loss of images that have a `Goal`, summed over them."""

    def loss_of(images: Tensor, goal: Goal, *fixed: Any) -> Tensor:
        return attack_losses(name, model.attack_logits(images, *fixed), goal).sum()

    return loss_of
