"""Image features and their gradient in the pixels: open_clip's own tower against the fast one."""

import pytest
import torch

from fastprompt import DeepPrompts, load_clip, load_data
from fastprompt.towers import make_image_tower

from .timing import gate

ENGINES = {"eager": "reference", "fastprompt": "fast"}


def gated(clip, visual):
    """Both rungs, which agree, on 64 images; ``visual`` prompts ``[layers, V, width]`` or None."""
    layers = () if visual is None else range(len(visual))
    pixels = load_data("shapes").test.images[:64].float() / 255
    size = clip.encode_text(["a"]).shape[-1]
    direction = torch.randn(len(pixels), size, generator=torch.Generator().manual_seed(0))

    def run(tower):
        images = pixels.clone().requires_grad_()
        features = tower(images, visual)
        (gradient,) = torch.autograd.grad(features, images, direction)
        return {"features": features.detach(), "pixel gradient": gradient}

    towers = {rung: make_image_tower(clip, layers, engine=e) for rung, e in ENGINES.items()}
    gate({rung: run(tower) for rung, tower in towers.items()})
    return {rung: lambda tower=tower: run(tower) for rung, tower in towers.items()}


@pytest.fixture(scope="module")
def plain():
    return gated(load_clip("tiny-shapes"), None)


@pytest.fixture(scope="module")
def prompted():
    clip = load_clip("tiny-shapes")
    return gated(clip, DeepPrompts.for_clip(clip, 4).values().visual.detach())


@pytest.mark.benchmark(group="towers/image/tiny-shapes-b64")
@pytest.mark.parametrize("rung", ENGINES)
def test_without_prompts(benchmark, plain, rung):
    benchmark.extra_info |= {"rung": rung}
    benchmark.pedantic(plain[rung], rounds=9, warmup_rounds=2)


@pytest.mark.benchmark(group="towers/image/tiny-shapes-b64-deep-prompts")
@pytest.mark.parametrize("rung", ENGINES)
def test_with_deep_prompts(benchmark, prompted, rung):
    benchmark.extra_info |= {"rung": rung}
    benchmark.pedantic(prompted[rung], rounds=9, warmup_rounds=2)
