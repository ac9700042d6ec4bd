"""A method's tuning step on each implementation: from images to the prompts' gradients.

The step uses the tuner's own batches, attack and loss; the implementation determines the CLIP
model. The optimizer's update is the same for all and is not included.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from fastprompt import FrozenCLIP
from fastprompt.attacks.result import untouched
from fastprompt.data import ImageTensors
from fastprompt.methods.registry import TUNERS
from fastprompt.model import classifier
from fastprompt.model.prompted import PromptedCLIP
from fastprompt.tuning.online import OnlineTuner
from fastprompt.tuning.online_pgd import OnlinePGD
from fastprompt.tuning.step import Step

from .clips import CLIPS, execution, step_by_step
from .timing import count_flops

# for the equality check: few names of different lengths
NAMES = ["cat", "small dog", "a long name indeed", "fish", "red circle"]
EPOCH = 0.5  # share of finished epochs: with a schedule, both terms of the loss have weight
NOISE = 0.02  # added to the initial values, where some gradients are zero and prove nothing


def random_images(n: int, size: int, classes: int) -> ImageTensors:
    """Create noise images with labels: pixel values do not change what is computed."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, size, size), generator=generator, dtype=torch.uint8)
    return ImageTensors(images, torch.arange(n) % classes)


def defaults(tuner: type[OnlineTuner], clip: FrozenCLIP) -> dict[str, Any]:
    """Return the default values of preset settings, so that a step is equal on every model."""
    preset = tuner.presets.get((clip.source or {}).get("model", ""), {})
    return {f.name: f.default for f in dataclasses.fields(tuner.Config) if f.name in preset}


class TunerStep:
    """One tuning step of a method with an online attack.

    Args:
        rung: the implementation, a key of `clips.CLIPS`.
        method: a tuner's name.
        settings: of the tuner.
    """

    def __init__(
        self,
        rung: str,
        method: str,
        clip: FrozenCLIP,
        names: Sequence[str],
        data: ImageTensors,
        **settings: Any,
    ) -> None:
        kind = CLIPS[rung]
        self.rung = rung
        tuner, shared = TUNERS[method], {"epochs": 20, "augment": False, "batch": len(data)}
        given = {**defaults(tuner, clip), **shared, **execution(rung, clip), **settings}
        self.tuner: OnlineTuner = tuner(clip, names, **given)
        if kind is not None:
            self.tuner.model = kind(clip, names, self.tuner.prompts)
        self.tuner.prepare(data, None, None, False)
        # drop CAPT's cache of frozen features of unaugmented images, which only one engine keeps:
        # with augmentation, its default, there is none
        if hasattr(self.tuner, "_known"):
            self.tuner._known = None
        if kind is not None:  # eager code captures no CUDA graph
            self.without_graph()
        self.order = torch.arange(len(data))

    def without_graph(self) -> None:
        """Run the attack without a CUDA graph from now on."""
        config = self.tuner.config
        self.tuner._attack = OnlinePGD(
            self.tuner.model, config.eps, config.step_size, config.steps, capture=False
        )

    def begin(self) -> Step:
        """Return the step's batch, before its attack has run."""
        epoch = int(EPOCH * self.tuner.config.epochs)
        ((_, step),) = self.tuner.batches(self.order, epoch)
        return step

    def __call__(self, adv: Tensor | None = None) -> Tensor:
        """Return the loss and compute the prompts' gradients, at ``adv`` if it is given."""
        self.tuner.prompts.zero_grad()
        step = self.begin()
        if adv is not None:
            step.result = untouched(adv)
        loss = self.tuner.loss(step)
        if isinstance(loss, FakeTensor):
            raise RuntimeError("flops() was called before the first step: run a step first")
        loss.backward()
        return loss.detach()

    def results(self, adv: Tensor) -> dict[str, Tensor]:
        """Return loss and gradients at ``adv``, and the attack's first gradient, for `timing.gate`.

        All implementations get the same adversarial images. Their own would differ where rounding
        flips the sign of a pixel's gradient; the gradient before the sign shows that the attacks
        are equal.
        """
        loss = self(adv)
        prompts = self.tuner.prompts.named_parameters()
        grads = {f"gradient of {n}": p.grad.clone() for n, p in prompts if p.grad is not None}
        return {"loss": loss, "first attack gradient": self.attack_gradient(), **grads}

    def attack_gradient(self) -> Tensor:
        """Return the gradient of the attack's loss with respect to the clean pixels."""
        step = self.begin()
        images, model = step.images.clone().requires_grad_(), self.tuner.model
        if model.engine == "reference":
            logits = model(images)
            loss = torch.nn.functional.cross_entropy(logits, step.labels, reduction="sum")
        else:
            fixed = model.prepare().detached()
            loss = model.attack_loss(images, step.labels, *fixed)
        return torch.autograd.grad(loss, images)[0]

    def inside(self, compiled: bool) -> AbstractContextManager[None]:
        """See `clips.step_by_step`."""
        return step_by_step(self.tuner.model, self.tuner._attack, compiled=compiled)

    def flops(self) -> int:
        """Count the FLOPs of a step on tensors without values; nothing is computed.

        Call it after a step has run: towers derive tensors in their first call.
        """
        step = self.begin()
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            step.images = mode.from_tensor(step.images)
            learning = [p for p in self.tuner.prompts.parameters() if p.requires_grad]

            def run() -> object:
                return torch.autograd.grad(self.tuner.loss(step), learning, allow_unused=True)

            return count_flops(run)


@contextmanager
def texts_encoded_once(clip: FrozenCLIP) -> Iterator[None]:
    """Cache CAPT's frozen text features, which are the same in every implementation."""
    encode, known = clip.encode_tokens, dict[bytes, Tensor]()

    def remembered(tokens: Tensor) -> Tensor:
        key = tokens.numpy().tobytes()
        if key not in known:
            known[key] = encode(tokens)
        return known[key]

    def through_it(clip: FrozenCLIP, tokens: Tensor) -> Tensor:
        return clip.encode_tokens(tokens)

    # the fast engine's zero-shot features differ by rounding
    plain = mock.patch.object(classifier, "encode_plain", through_it)
    with plain, mock.patch.object(clip, "encode_tokens", remembered):
        yield


def tuner_steps(
    rungs: Sequence[str], method: str, *args: Any, **settings: Any
) -> dict[str, TunerStep]:
    """Create a step for each implementation, all with the same prompts."""
    with texts_encoded_once(args[0]):
        steps = {rung: TunerStep(rung, method, *args, **settings) for rung in rungs}
    first = next(iter(steps.values()))
    generator = torch.Generator().manual_seed(1)
    state = {
        name: value + NOISE * torch.randn(value.shape, generator=generator).to(value.device)
        for name, value in first.tuner.prompts.state_dict().items()
    }
    for step in steps.values():
        step.tuner.prompts.load_state_dict(state)
    return steps


def agreement(steps: dict[str, TunerStep]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors for `timing.gate`, at the first implementation's adversarial images."""
    adv = next(iter(steps.values())).begin().adv
    return {rung: step.results(adv) for rung, step in steps.items()}


@contextmanager
def counting_text(model: PromptedCLIP) -> Iterator[Counter[str]]:
    """Count the text encoder's ``forwards`` and the ``tokens`` that enter its first block."""
    count: Counter[str] = Counter()

    def forward(*_: object) -> None:
        count["forwards"] += 1

    def tokens(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
        count["tokens"] += inputs[0].numel() // inputs[0].shape[-1]

    text: Any = model.text
    # the fast tower calls a block's modules one by one: its first LayerNorm gets the block's input
    first = text.parts.transformer.resblocks[0].ln_1
    hooks = [text.register_forward_hook(forward), first.register_forward_hook(tokens)]
    try:
        yield count
    finally:
        for hook in hooks:
            hook.remove()
