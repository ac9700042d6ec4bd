"""A method's whole tuning step by every rung: images in, gradients in the prompts out.

The step is the tuner's own: its pictures, its attack, its loss. A rung says what CLIP is under it.
The optimizer's update, alike for all, is left out.
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
from fastprompt.model.prompted import PromptedCLIP
from fastprompt.tuning.online import OnlineTuner
from fastprompt.tuning.online_pgd import OnlinePGD
from fastprompt.tuning.step import Step

from .clips import CLIPS, step_by_step
from .timing import count_flops

# of the gate: few, of different lengths
NAMES = ["cat", "small dog", "a long name indeed", "fish", "red circle"]
EPOCH = 0.5  # share of the epochs that are done: where it matters, both of a loss's parts count
NOISE = 0.02  # on the start values: some gradients are zero there, which shows nothing


def random_images(n: int, size: int, classes: int) -> ImageTensors:
    """Noise with labels: what the pixels show does not change what is computed."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, size, size), generator=generator, dtype=torch.uint8)
    return ImageTensors(images, torch.arange(n) % classes)


def published(tuner: type[OnlineTuner], clip: FrozenCLIP) -> dict[str, Any]:
    """The defaults of what a bundled model has presets for: a step is the same on every model."""
    preset = tuner.presets.get((clip.source or {}).get("model", ""), {})
    return {f.name: f.default for f in dataclasses.fields(tuner.Config) if f.name in preset}


class TunerStep:
    """One step of a method that attacks online.

    Args:
        rung: a key of `clips.CLIPS`.
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
        engine = "fast" if rung == "fastprompt" else "reference"
        self.rung = rung
        tuner, shared = TUNERS[method], {"epochs": 20, "augment": False, "batch": len(data)}
        given = {**published(tuner, clip), **shared, **settings}
        self.tuner: OnlineTuner = tuner(clip, names, engine=engine, **given)
        if kind is not None:
            self.tuner.model = kind(clip, names, self.tuner.prompts)
        self.tuner.prepare(data, None, None, False)
        # CAPT's frozen features of images that stay as they are, which one engine alone keeps: with
        # augmentation, its default, there are none
        if hasattr(self.tuner, "_known"):
            self.tuner._known = None
        if kind is not None:  # eager code captures no graph
            self.without_graph()
        self.order = torch.arange(len(data))

    def without_graph(self) -> None:
        """Attack without a CUDA graph from here on."""
        config = self.tuner.config
        self.tuner._attack = OnlinePGD(
            self.tuner.model, config.eps, config.step_size, config.steps, capture=False
        )

    def begin(self) -> Step:
        """The step's batch; its attack has not run."""
        epoch = int(EPOCH * self.tuner.config.epochs)
        ((_, step),) = self.tuner.batches(self.order, epoch)
        return step

    def __call__(self, adv: Tensor | None = None) -> Tensor:
        """The loss, its gradients in the prompts; ``adv`` instead of an attack of its own."""
        self.tuner.prompts.zero_grad()
        step = self.begin()
        if adv is not None:
            step.result = untouched(adv)
        loss = self.tuner.loss(step)
        if isinstance(loss, FakeTensor):
            raise RuntimeError("flops() came first: what the towers derive was made without values")
        loss.backward()
        return loss.detach()

    def results(self, adv: Tensor) -> dict[str, Tensor]:
        """For the gate: loss and gradients at ``adv``, and the attack's first gradient.

        All rungs are handed the same images. Their own would differ where rounding turns the sign
        of a pixel's gradient; that the attacks are one is shown by the gradient before any sign.
        """
        loss = self(adv)
        prompts = self.tuner.prompts.named_parameters()
        grads = {f"gradient of {n}": p.grad.clone() for n, p in prompts if p.grad is not None}
        return {"loss": loss, "first attack gradient": self.attack_gradient(), **grads}

    def attack_gradient(self) -> Tensor:
        """Of the attack's loss in the clean pixels."""
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
        """FLOPs of a step, counted on tensors without values: nothing is computed.

        To be asked after a step has run: towers derive tensors when they are first called.
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
    """CAPT's frozen text features are the same in every rung: one encodes them for all."""
    encode, known = clip._encode_tokens, dict[bytes, Tensor]()

    def remembered(tokens: Tensor) -> Tensor:
        key = tokens.numpy().tobytes()
        if key not in known:
            known[key] = encode(tokens)
        return known[key]

    with mock.patch.object(clip, "_encode_tokens", remembered):
        yield


def tuner_steps(
    rungs: Sequence[str], method: str, *args: Any, **settings: Any
) -> dict[str, TunerStep]:
    """A step of each rung, all with the same prompts."""
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
    """What `timing.gate` compares, at the first rung's adversarial images."""
    adv = next(iter(steps.values())).begin().adv
    return {rung: step.results(adv) for rung, step in steps.items()}


@contextmanager
def counting_text(model: PromptedCLIP) -> Iterator[Counter[str]]:
    """Counts ``forwards`` of the text encoder, and ``tokens`` that go into its first block."""
    count: Counter[str] = Counter()

    def forward(*_: object) -> None:
        count["forwards"] += 1

    def tokens(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
        count["tokens"] += inputs[0].numel() // inputs[0].shape[-1]

    text: Any = model.text
    # the fast tower calls a block piece by piece: its first LayerNorm sees what the block does
    first = text.parts.transformer.resblocks[0].ln_1
    hooks = [text.register_forward_hook(forward), first.register_forward_hook(tokens)]
    try:
        yield count
    finally:
        for hook in hooks:
            hook.remove()
