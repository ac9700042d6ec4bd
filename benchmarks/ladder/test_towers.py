"""Text and image encoders alone: class features with the context's gradient, image features.

The equality check of many classes uses few. Implementations that take minutes are skipped.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastprompt import DeepPrompts, TextContext

from ..common.clips import in_both_precisions, low_dtypes, prompted, step_by_step
from ..common.models import BUNDLED, class_names, shared_clip
from ..common.sizes import DEVICE, SIZE, SMALL
from ..common.timing import count_without_values
from ..common.tuner_steps import NAMES
from .group import Group, Spec, ladder, replay

N_CTX = 16
TEXT = ("eager", "eager-careful", "compiled", "fastprompt")
IMAGE = ("eager", "compiled", "fastprompt")
NO_ATTACK = {"eager-hoisted": "without an attack it is the same as eager"}
NO_TEXT = dict.fromkeys(
    ("eager-hoisted", "eager-careful"), "an image encoder alone is the same as eager"
)


def _direction(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)


class Text:
    """Class features and the context's gradient, for a fixed output gradient."""

    def __init__(self, rung: str, clip: Any, names: list[str]) -> None:
        self.prompts = TextContext(N_CTX, clip.text_parts.width).to(DEVICE)
        self.model = prompted(rung, clip, names, self.prompts)
        self.direction = _direction(len(names), clip.encode_text(["a"]).shape[-1])

    def __call__(self) -> dict[str, Tensor]:
        features = self.model.class_features()
        (gradient,) = torch.autograd.grad(features, self.prompts.tokens, self.direction)
        return {"features": features.detach(), "context gradient": gradient}


class Image:
    """Image features; with ``gradient`` also the pixels' gradient."""

    def __init__(
        self, rung: str, clip: Any, batch: int, deep: bool = False, gradient: bool = True
    ) -> None:
        prompts = DeepPrompts.for_clip(clip, 4) if deep else TextContext(4, clip.text_parts.width)
        self.model = prompted(rung, clip, NAMES, prompts.to(DEVICE))
        generator = torch.Generator().manual_seed(0)
        size = clip.image_size
        self.images = torch.rand(batch, 3, size, size, generator=generator).to(DEVICE)
        self.gradient = gradient
        self.direction = _direction(batch, clip.encode_text(["a"]).shape[-1])

    def __call__(self) -> dict[str, Tensor]:
        if not self.gradient:
            with torch.no_grad():
                return {"features": self.model.image_features(self.images)}
        images = self.images.clone().requires_grad_()
        features = self.model.image_features(images)
        (gradient,) = torch.autograd.grad(features, images, self.direction)
        return {"features": features.detach(), "pixel gradient": gradient}


def text(rungs: tuple[str, ...], model: str, classes: int, rounds: int) -> Group:
    """Build the group of the text encoder, forward and backward."""
    clip = shared_clip(model, DEVICE)
    gated = {rung: Text(rung, clip, NAMES)() for rung in ("eager", *rungs)}
    torch.compiler.reset()  # each size is compiled separately
    made = {rung: Text(rung, clip, class_names(classes)) for rung in rungs}
    size = {"model": model, "classes": classes, "n_ctx": N_CTX}
    return Group(
        made,
        gated,
        rounds=rounds,
        warmup=0 if rounds < 3 else 1,
        once=("eager", "eager-careful") if rounds < 3 else (),
        baseline=rungs[0],
        dtypes=low_dtypes(),
        inside=lambda rung, keep: step_by_step(made[rung].model, compiled=keep),
        flops=_counted(made, "eager-careful"),
        size=size,
    )


def image(
    rungs: tuple[str, ...], model: str, batch: int, deep: bool = False, gradient: bool = True
) -> Group:
    """Build the group of the image encoder."""
    clip = shared_clip(model, DEVICE)
    made = {rung: Image(rung, clip, batch, deep, gradient) for rung in rungs}
    results = {rung: one() for rung, one in made.items()}
    size = {"model": model, "images": batch, "deep_prompts": deep, "gradient": gradient}
    return Group(
        made,
        results,
        rounds=5 if model in BUNDLED else 3,
        warmup=0,  # the equality check has run them
        dtypes=low_dtypes(),
        inside=lambda rung, keep: step_by_step(made[rung].model, compiled=keep),
        flops=_counted(made, "eager"),
        size=size,
    )


def _counted(made: Any, eager: str) -> Any:
    """Count compiled code as the eager code that it is compiled from."""
    return lambda rung: count_without_values(made[eager if rung == "compiled" else rung])


def texts() -> list[Spec]:
    """Return the text encoder's groups, with increasing numbers of classes."""
    if SIZE == SMALL:
        slow = dict.fromkeys(("eager", "eager-careful"), "too slow for 1,000 classes on a CPU")
        at_others = dict.fromkeys(TEXT[:-1], "skipped to save time: see towers/text/c10 and c200")
        passes = "a pass takes minutes on a CPU: benchmarks.growth measures fastprompt's once"
        many: dict[int, tuple[tuple[str, ...], dict[str, str], int]] = {
            10: (TEXT, NO_ATTACK, 3),
            100: (("fastprompt",), {**NO_ATTACK, **at_others}, 2),
            200: (("eager", "eager-careful", "fastprompt"), {**NO_ATTACK, **COMPILED_AT_10}, 2),
            1000: (("fastprompt",), {**NO_ATTACK, **slow, **COMPILED_AT_10}, 1),
            21_000: ((), dict.fromkeys(("eager", "fastprompt"), passes), 1),
        }
    else:
        slow = dict.fromkeys(TEXT[:-1], "77 tokens of 21,000 classes do not fit into memory")
        many = dict.fromkeys((10, 100, 1000), (TEXT, NO_ATTACK, 5))
        many[21_000] = ("fastprompt",), {**NO_ATTACK, **slow}, 3
    model, specs = "ViT-B-32", []
    for c, (some, left_out, rounds) in many.items():
        rungs = in_both_precisions(some)
        build = partial(text, rungs, model, c, rounds)
        specs.append(Spec(f"towers/text/c{c}", build, rungs, left_out))
    return specs


COMPILED_ONCE = {"compiled": "compiled anew for each case: see image-gradient/tiny-shapes-b64"}
COMPILED_AT_10 = {"compiled": "compiled anew for each size: see towers/text/c10"}


def images() -> list[Spec]:
    """Return groups of features only, with the pixel gradient, and with prompts in every layer."""
    small = SIZE == SMALL
    model, batch = ("ViT-B-32", 8) if small else ("ViT-B-16", 256)
    bundled = (BUNDLED[0], 64)
    kinds: list[tuple[str, tuple[str, int], dict[str, Any]]] = [
        ("image-fwd", bundled if small else (model, batch), {"gradient": False}),
        ("image-gradient", (model, batch), {}),
        ("image-gradient", bundled, {}),
        ("image-gradient-deep-prompts", bundled, {"deep": True}),
    ]
    specs = []
    for what, (name, b), how in kinds:
        # compiling each case takes long on a CPU: only the smallest one is compiled
        compiled = not small or (name, how) == (bundled[0], {})
        rungs = in_both_precisions(IMAGE if compiled else ("eager", "fastprompt"))
        left_out = NO_TEXT if compiled else {**NO_TEXT, **COMPILED_ONCE}
        build = partial(image, rungs, name, b, **how)
        specs.append(Spec(f"towers/{what}/{name.lower()}-b{b}", build, rungs, left_out))
    return specs


@ladder([*texts(), *images()])
def test_towers(benchmark, spec, rung):
    replay(benchmark, spec, rung)
