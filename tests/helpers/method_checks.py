"""Tuners of every method on a small model, and their losses' parts spelled out slowly."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fastprompt import FrozenCLIP, load_clip
from fastprompt.data import ImageTensors
from fastprompt.methods.registry import TUNERS
from fastprompt.model.prompted import PromptedCLIP
from fastprompt.tuning.step import Step
from fastprompt.tuning.tuner import Tuner
from helpers.models import small_model

NAMES = ["cat", "very_small dog", "red circle", "fish", "bird"]
EXACT, SINGLE = 1e-10, 1e-5
SMALLEST = 1e-6  # norm of a gradient that is there
EXAMPLES, BATCH = 9, 3  # three optimizer steps an epoch

ONLINE = {
    **{"n_ctx": 3, "steps": 2, "eps": "8/255", "epochs": 4, "batch": BATCH},
    **{"lr": 0.02, "compile": False, "seed": 3},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "advpt": {**ONLINE, "attack_batch": 4},
    "apt": ONLINE,
    "ampt": {**ONLINE, "n_prompts": 3},
    "capt": ONLINE,
    "nap": {**ONLINE, "lr": 1e-3},
}


@cache
def clip_of(dtype: torch.dtype = torch.float64) -> FrozenCLIP:
    """A small random model."""
    return load_clip(small_model().to(dtype))


def data(n: int = EXAMPLES) -> ImageTensors:
    """Images of noise, and labels that go round."""
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(256, (n, 3, 48, 48), generator=generator, dtype=torch.uint8)
    return ImageTensors(pixels, torch.arange(n) % len(NAMES))


def perturb(module: nn.Module, std: float = 0.1, seed: int = 5) -> nn.Module:
    """Every learnable tensor away from its start value: a refiner's zeros would hide it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p += std * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return module


def tuner_of(
    method: str,
    engine: str = "fast",
    *,
    clip: FrozenCLIP | None = None,
    perturbed: float = 0.1,
    n: int = EXAMPLES,
    **options: Any,
) -> Any:
    """A tuner that is ready for its steps, none of what learns at its start value."""
    settings = {**SETTINGS[method], **options}
    tuner = TUNERS[method](clip or clip_of(), NAMES, engine=engine, **settings)
    perturb(tuner.prompts, perturbed)
    tuner.prepare(data(n), None, None, False)
    return tuner


def order(n: int = EXAMPLES) -> Tensor:
    """The images' order: not that of the data set."""
    return torch.arange(n).roll(4)


def first_step(tuner: Tuner, epoch: int = 1) -> Step:
    """The first batch of an epoch."""
    _, step = next(iter(tuner.batches(order(), epoch)))
    return step


def relative(a: Tensor, b: Tensor) -> float:
    """``||a - b|| / ||b||``."""
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    return float((a.detach() - b.detach()).norm() / b.detach().norm())


def gradients(prompts: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """The loss's gradient in every learnable tensor, each of them there.

    The prompts of each layer, class or mixture count for themselves: one that is forgotten would
    hide in the norm.
    """
    names, tensors = zip(*prompts.named_parameters(), strict=True)
    out = dict(zip(names, torch.autograd.grad(loss, tensors, retain_graph=True), strict=True))
    for name, grad in out.items():
        for i, part in enumerate(grad if grad.ndim == 3 else grad[None]):
            assert part.norm() > SMALLEST, f"no gradient reaches {name}[{i}]"
    return out


def agree(prompts: nn.Module, ours: Tensor, wanted: Tensor, tolerance: float = EXACT) -> None:
    """Two losses of the same prompts, and their gradients."""
    errors = {"loss": relative(ours, wanted)}
    both = gradients(prompts, ours), gradients(prompts, wanted)
    errors |= {name: relative(both[0][name], both[1][name]) for name in both[1]}
    assert max(errors.values()) <= tolerance, errors


# ---- losses, slowly --------------------------------------------------------------------------


def reference_of(tuner: Tuner) -> PromptedCLIP:
    """open_clip's own modules, with the tuner's very prompts."""
    own = getattr(tuner.config, "class_specific", False)
    return PromptedCLIP(tuner.clip, NAMES, tuner.prompts, engine="reference", class_specific=own)


def unit(vector: Tensor) -> Tensor:
    return vector / (vector * vector).sum().sqrt()


def image_features(model: PromptedCLIP, images: Tensor) -> Tensor:
    """As the tower gives them, ``[B, D]``."""
    return model.image(images, model.prompts.values().visual, model.refiners)


def text_features(model: PromptedCLIP) -> Tensor:
    """As the tower gives them, ``[C, D]``, of a mixture ``[K, C, D]``."""
    values = model.prompts.values()
    return model.text(values.context, values.deep, model.text_refiners)


def scale_of(clip: FrozenCLIP) -> Tensor:
    return clip.model.logit_scale.exp()


def cosine_logits(clip: FrozenCLIP, images: Tensor, text: Tensor) -> list[Tensor]:
    """``s f.t_c`` of raw features, one image and class at a time: B of ``[C]``."""
    return [torch.stack([scale_of(clip) * (unit(f) * unit(t)).sum() for t in text]) for f in images]


def logits_of(model: PromptedCLIP, images: Tensor) -> list[Tensor]:
    """Logits through one prompt."""
    return cosine_logits(model.clip, image_features(model, images), text_features(model))


def log_probabilities(logits: Tensor) -> Tensor:
    """Of one image, ``[C]``."""
    shifted = logits - logits.max().detach()
    return shifted - shifted.exp().sum().log()


def cross_entropy(logits: list[Tensor], labels: Tensor) -> Tensor:
    """The mean over the images."""
    losses = [-log_probabilities(z)[int(y)] for z, y in zip(logits, labels, strict=True)]
    return sum(losses) / len(losses)


# ---- calls -----------------------------------------------------------------------------------


class Calls:
    """Forward and backward passes of a module, by what they were given."""

    def __init__(self) -> None:
        self.forward: list[int] = []  # sizes
        self.backward = 0


@contextmanager
def counted(module: nn.Module, size: Callable[[Any, Any], int]) -> Iterator[Calls]:
    """Calls of ``module``; ``size`` tells one from its input and output."""
    calls = Calls()

    def back(_: Any) -> None:
        calls.backward += 1

    def hook(_: Any, inputs: Any, output: Any) -> None:
        out = output[0] if isinstance(output, tuple) else output
        calls.forward.append(size(inputs, out))
        if out.requires_grad:
            out.register_hook(back)

    handle = module.register_forward_hook(hook)
    try:
        yield calls
    finally:
        handle.remove()


def images_in(inputs: Any, _: Tensor) -> int:
    return len(inputs[0])


def classes_out(_: Any, output: Tensor) -> int:
    """Classes, once for each prompt of a mixture."""
    return output.shape[:-1].numel()


def tokens_out(_: Any, output: Tensor) -> int:
    return output.shape[:-1].numel()
