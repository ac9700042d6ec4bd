"""What folding frozen parts gains: the pixel normalisation, and LayerNorm's scale and shift.

The first is folded into the patch embedding, which becomes a matrix product (`ImageTower`). The
second is not folded into the linear layer behind it: that would gain nothing, for a copy of the
weights.
"""

import pytest
import torch
import torch.nn.functional as F

from fastprompt.towers import ImageTower

from .models import random_clip
from .timing import gate


def pixel_gradient(embed, images):
    """A function that embeds the images and takes a gradient in the pixels."""
    direction = torch.randn(50, 768, generator=torch.Generator().manual_seed(1))

    def run():
        pixels = images.clone().requires_grad_()
        tokens = embed(pixels)
        # against a fixed direction: a LayerNorm's squares add up to a constant
        (grad,) = torch.autograd.grad(tokens, pixels, direction.expand_as(tokens))
        return {"tokens": tokens.detach(), "pixel gradient": grad}

    return run


@pytest.fixture(scope="module")
def embeddings():
    clip = random_clip()
    tower, visual = ImageTower(clip), clip.model.visual
    images = torch.rand(8, 3, 224, 224, generator=torch.Generator().manual_seed(0))

    def apart(pixels):
        return visual._embeds((pixels - clip.mean) / clip.std)

    rungs = {"apart": pixel_gradient(apart, images), "folded": pixel_gradient(tower._embed, images)}
    gate({name: run() for name, run in rungs.items()}, baseline="apart")
    return rungs


@pytest.mark.benchmark(group="fold/normalisation/vit-b-32-b8")
@pytest.mark.parametrize("rung", ["apart", "folded"])
def test_patch_embedding(benchmark, embeddings, rung):
    benchmark.extra_info |= {"rung": rung}
    benchmark.pedantic(embeddings[rung], rounds=15, warmup_rounds=3)


@pytest.fixture(scope="module")
def norms():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 512, generator=generator).requires_grad_()
    weight, scale = torch.randn(1536, 512, generator=generator), 1 + torch.rand(512)
    shift, bias = torch.randn(512, generator=generator), torch.randn(1536, generator=generator)
    folded, moved = weight * scale, bias + weight @ shift

    def run(normalised, weight, bias):
        out = F.linear(normalised(), weight, bias)
        (grad,) = torch.autograd.grad(out.square().sum(), x)
        return {"out": out.detach(), "gradient": grad}

    rungs = {
        "apart": lambda: run(lambda: F.layer_norm(x, (512,), scale, shift), weight, bias),
        "folded": lambda: run(lambda: F.layer_norm(x, (512,)), folded, moved),
    }
    gate({name: run() for name, run in rungs.items()}, baseline="apart")
    return rungs


@pytest.mark.benchmark(group="fold/layer-norm/w512-n1000")
@pytest.mark.parametrize("rung", ["apart", "folded"])
def test_layer_norm_and_linear(benchmark, norms, rung):
    benchmark.extra_info |= {"rung": rung}
    benchmark.pedantic(norms[rung], rounds=50, warmup_rounds=5)
