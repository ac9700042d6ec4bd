"""Compares each example in `examples` with its version for fastprompt.

Both use the same images, class names and initial context; the timed functions are those of the
examples.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples import coop_loop, coop_loop_fast, pgd, pgd_fast
from fastprompt import load_clip, load_data
from fastprompt.data import Data

MODEL, DATA = "tiny-shapes", "shapes"
BATCH = 32  # a power of two: torchattacks' mean over it flips no gradient's sign
LOOPS: dict[str, ModuleType] = {"eager": coop_loop, "fastprompt": coop_loop_fast}
ATTACKS: dict[str, ModuleType] = {"torchattacks": pgd, "fastprompt": pgd_fast}


class Loops:
    """The tuning loop of each implementation.

    Args:
        batch: images, all in one optimizer step.
    """

    baseline = "eager"

    def __init__(self, batch: int = BATCH, device: str | torch.device = "cpu") -> None:
        data = load_data(DATA, shots=1)
        self.images, self.labels = pictures(data, batch, device)
        self.classes = len(data.classnames)
        self.models: dict[str, nn.Module] = {
            rung: loop.prompted(load_clip(MODEL, device=device).model, data.classnames).to(device)
            for rung, loop in LOOPS.items()
        }

    def rungs(self) -> dict[str, Callable[[], object]]:
        """Return one optimizer step per implementation: attack, loss, gradients, update."""

        def step(rung: str) -> Callable[[], object]:
            tune, model = LOOPS[rung].tune, self.models[rung]
            return lambda: tune(model, self.images, self.labels, batch=len(self.images))

        return {rung: step(rung) for rung in self.models}

    def results(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of the equality check; call it before timing, which updates contexts.

        All implementations get the baseline's adversarial images. Their own would differ where
        rounding flips the sign of a pixel's gradient; the gradient before the sign shows that the
        attacks are equal.
        """
        adv = coop_loop.attacked(self.models[self.baseline], self.images, self.labels)
        return {rung: self._results(model, adv) for rung, model in self.models.items()}

    def _results(self, model: nn.Module, adv: Tensor) -> dict[str, Tensor]:
        (context,) = (p for p in model.parameters() if p.requires_grad)
        loss = F.cross_entropy(model(adv), self.labels)
        (gradient,) = torch.autograd.grad(loss, context)
        return {
            "loss": loss.detach(),
            "gradient of context": gradient,
            "first attack gradient": self._attack_gradient(model),
        }

    def _attack_gradient(self, model: nn.Module) -> Tensor:
        """Return the loss's gradient in the clean pixels, through the model that PGD gets."""
        attacked: Any = model.classifier() if hasattr(model, "classifier") else model
        images = self.images.clone().requires_grad_()
        loss = F.cross_entropy(attacked(images), self.labels)
        return torch.autograd.grad(loss, images)[0]

    def size(self) -> dict[str, Any]:
        """Return the timed sizes, for the record."""
        return {
            "model": MODEL,
            "classes": self.classes,
            "batch": len(self.images),
            "steps": coop_loop.STEPS,
        }


class Attacks:
    """Both libraries' PGD on one zero-shot classifier."""

    baseline = "torchattacks"

    def __init__(self, batch: int = BATCH, device: str | torch.device = "cpu") -> None:
        data = load_data(DATA, shots=1)
        self.images, self.labels = pictures(data, batch, device)
        clip = load_clip(MODEL, device=device)
        self.classes = len(data.classnames)
        self.model: nn.Module = clip.zero_shot(data.classnames, data.templates)

    def rungs(self) -> dict[str, Callable[[], object]]:
        """Return the attack of each implementation."""

        def attack(rung: str) -> Callable[[], object]:
            return lambda: ATTACKS[rung].adversarial(self.model, self.images, self.labels)

        return {rung: attack(rung) for rung in ATTACKS}

    def results(self) -> dict[str, dict[str, Tensor]]:
        """Return the perturbations, for the equality check."""
        found = {rung: run() for rung, run in self.rungs().items()}
        return {rung: {"perturbation": adv - self.images} for rung, adv in found.items()}

    def size(self) -> dict[str, Any]:
        """Return the timed sizes, for the record."""
        return {
            "model": MODEL,
            "classes": self.classes,
            "images": len(self.images),
            "steps": pgd.STEPS,
        }


def pictures(data: Data, batch: int, device: str | torch.device) -> tuple[Tensor, Tensor]:
    """Return the first training images, float32 ``[B, 3, H, W]`` in [0, 1], and their labels."""
    images = data.train.images[:batch].float() / 255
    return images.to(device), data.train.labels[:batch].to(device)
