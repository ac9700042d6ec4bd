"""One tuning step of deep prompts on fresh adversarial images, by three rungs.

All minimise ``0.5 CE(clean) + 0.5 CE(adversarial)``; the optimiser's own update, alike for all, is
left out.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastprompt import FrozenCLIP
from fastprompt.attacks.capture import CapturedAscent
from fastprompt.attacks.online import OnlinePGD
from fastprompt.attacks.random_start import random_start
from fastprompt.prompted import PromptedCLIP
from fastprompt.seen import Prepared


@dataclass(frozen=True)
class Batch:
    """Images ``[B, 3, S, S]``, labels ``[B]``, and the attack on them."""

    images: Tensor
    labels: Tensor
    eps: float = 4 / 255
    alpha: float = 2 / 255
    steps: int = 3

    @property
    def indices(self) -> Tensor:
        """Keys of the random starts."""
        return torch.arange(len(self.images), device=self.images.device)

    @property
    def start(self) -> Tensor:
        """Where every rung's attack starts: `OnlinePGD`'s own random start."""
        return random_start(self.images, self.eps, self.indices, seed=0, sides="two-sided")

    def to(self, device: str) -> Batch:
        """On another device."""
        images, labels = self.images.to(device), self.labels.to(device)
        return dataclasses.replace(self, images=images, labels=labels)


def random_batch(batch: int, image_size: int, classes: int, steps: int = 3) -> Batch:
    """Noise with labels: what the pixels show does not change what is computed."""
    images = torch.rand(
        batch, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)
    )
    return Batch(images, torch.arange(batch) % classes, steps=steps)


class Rung(ABC):
    """A way to do the step; rungs share ``prompts``, whose gradients each step starts anew.

    ``options`` are those of `PromptedCLIP`.
    """

    engine: ClassVar[str]

    def __init__(
        self,
        clip: FrozenCLIP,
        names: Sequence[str],
        prompts: nn.Module,
        batch: Batch,
        **options: Any,
    ) -> None:
        self.prompts, self.batch = prompts, batch
        self.model = PromptedCLIP(clip, names, prompts, engine=self.engine, **options)
        self.pgd = OnlinePGD(self.model, batch.eps, batch.alpha, batch.steps)

    def step(self, adv: Tensor | None = None) -> Tensor:
        """The loss, with its gradients in the prompts; ``adv`` instead of an attack of its own."""
        self.prompts.zero_grad()
        prepared = self.prepare()
        adv = self.attack(prepared) if adv is None else adv
        clean, attacked = (
            F.cross_entropy(logits, self.batch.labels) for logits in self.pair(adv, prepared)
        )
        loss = 0.5 * clean + 0.5 * attacked
        loss.backward()
        return loss.detach()

    def prepare(self) -> Prepared | None:
        """What the step computes of the prompts in front: attack and loss share it."""
        return self.model.prepare()

    def attack(self, prepared: Prepared | None) -> Tensor:
        """Adversarial images."""
        b = self.batch
        return self.pgd(b.images, b.labels, b.indices, prepared).images

    def pair(self, adv: Tensor, prepared: Prepared | None) -> tuple[Tensor, Tensor]:
        """Logits of clean and of adversarial images."""
        return self.model.pair(self.batch.images, adv, prepared)

    @abstractmethod
    def attack_loss(self, images: Tensor) -> Tensor:
        """What the attack climbs, as a function of the pixels."""

    def results(self, adv: Tensor) -> dict[str, Tensor]:
        """For the gate: loss and gradients at ``adv``, the attack's first gradient."""
        loss = self.step(adv)
        parameters = self.prompts.named_parameters()
        # copies: the next rung's step starts the same prompts' gradients anew
        grads = {f"gradient of {n}": p.grad.clone() for n, p in parameters if p.grad is not None}
        start = self.batch.start.requires_grad_()
        (pixels,) = torch.autograd.grad(self.attack_loss(start), start)
        return {"loss": loss, "first attack gradient": pixels, **grads}


class Eager(Rung):
    """As published code does it: the text encoder runs in every forward pass, the attack's too."""

    engine = "reference"

    def prepare(self) -> None:
        return None

    def attack_loss(self, images: Tensor) -> Tensor:
        return F.cross_entropy(self.model(images), self.batch.labels, reduction="sum")


class FastPrompt(Rung):
    """The fast engine: class features once, clean and adversarial images in one pass."""

    engine = "fast"

    def attack_loss(self, images: Tensor) -> Tensor:
        fixed = self.model.prepare().detached()
        return self.model.attack_loss(images, self.batch.labels, *fixed)


class Hoisted(FastPrompt):
    """Eager towers, but class features once a step, held fixed in the attack; nothing else."""

    engine = "reference"

    def attack(self, prepared: Prepared | None) -> Tensor:
        assert prepared is not None
        b = self.batch
        # not `OnlinePGD`, which on the reference engine has the text encoder inside
        ascent = CapturedAscent(
            self.model.attack_loss, alpha=b.alpha, eps=b.eps, steps=b.steps, capture=False
        )
        with self.model.frozen_prompts():
            return ascent(b.images, b.start, b.labels, *prepared.detached())[0]

    def pair(self, adv: Tensor, prepared: Prepared | None) -> tuple[Tensor, Tensor]:
        assert prepared is not None
        clean, attacked = (
            self.model.logits(self.model.image_features(x, prepared.values), prepared.text)
            for x in (self.batch.images, adv)
        )
        return clean, attacked


RUNGS: Mapping[str, type[Rung]] = {
    "eager": Eager,
    "eager-hoisted": Hoisted,
    "fastprompt": FastPrompt,
}


def make_rungs(
    clip: FrozenCLIP, names: Sequence[str], prompts: nn.Module, batch: Batch
) -> dict[str, Rung]:
    """All rungs on one model and the same prompts."""
    return {name: kind(clip, names, prompts, batch) for name, kind in RUNGS.items()}


def gate_results(rungs: Mapping[str, Rung]) -> dict[str, dict[str, Tensor]]:
    """What `timing.gate` compares: each rung's loss and gradients.

    All are handed the eager rung's adversarial images. Their own would differ where rounding turns
    the sign of a pixel's gradient, by a whole step there, though the mathematics is one; that the
    attacks are one, too, is shown by their first gradient, before any sign is taken.
    """
    adv = rungs["eager"].attack(None)
    return {name: rung.results(adv) for name, rung in rungs.items()}


@contextmanager
def counting_text(rung: Rung) -> Iterator[Counter[str]]:
    """Counts ``forwards`` of the text encoder, and ``tokens`` that go into its first block."""
    count: Counter[str] = Counter()

    def forward(*_: object) -> None:
        count["forwards"] += 1

    def tokens(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
        count["tokens"] += inputs[0].numel() // inputs[0].shape[-1]

    text: Any = rung.model.text
    # the fast tower calls a block piece by piece: its first LayerNorm sees what the block does
    first = text.parts.transformer.resblocks[0].ln_1
    hooks = [text.register_forward_hook(forward), first.register_forward_hook(tokens)]
    try:
        yield count
    finally:
        for hook in hooks:
            hook.remove()
