"""Speed-up from folding the pixel normalization, and LayerNorm's scale and shift, into weights.

The normalization is folded into the patch embedding, which becomes a matrix product (`ImageTower`).
fastprompt does not fold LayerNorm into the linear layer after it, which would gain nothing and need
a copy of the weights. This implementation is therefore named ``folded``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastprompt.towers import ImageTower

from ..common.models import random_clip
from ..common.sizes import DEVICE
from .group import Group, Spec, ladder, replay


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def _with_gradient(function: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor) -> Any:
    # a fixed output gradient: the sum of a LayerNorm's squared outputs is constant
    x = x.clone().requires_grad_()
    out = function(x)
    (gradient,) = torch.autograd.grad(out, x, direction.expand_as(out))
    return {"out": out.detach(), "gradient": gradient}


def _group(functions: dict[str, Any], x: Tensor, direction: Tensor, size: dict[str, Any]) -> Group:
    runs = {name: partial(_with_gradient, f, x, direction) for name, f in functions.items()}
    return Group(runs, {n: run() for n, run in runs.items()}, rounds=9, warmup=2, size=size)


def patches() -> Group:
    """Embed pixels: normalize them first, or use weights that include the normalization."""
    clip = random_clip().to(DEVICE)
    tower, visual = ImageTower(clip), clip.model.visual

    def apart(pixels: Tensor) -> Tensor:
        return visual._embeds((pixels - clip.mean) / clip.std)

    images = torch.rand(8, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    functions = {"eager": apart, "fastprompt": tower._embed}
    return _group(functions, images, _random(50, 768, seed=1), {"model": "ViT-B-32", "images": 8})


def layer_norm() -> Group:
    """LayerNorm and the linear layer after it."""
    weight, scale = _random(1536, 512), 1 + _random(512, seed=2).abs()
    shift, bias = _random(512, seed=3), _random(1536, seed=4)
    folded, moved = weight * scale, bias + weight @ shift
    functions = {
        "eager": lambda x: F.linear(F.layer_norm(x, (512,), scale, shift), weight, bias),
        "folded": lambda x: F.linear(F.layer_norm(x, (512,)), folded, moved),
    }
    size = {"tokens": 1000, "width": 512}
    return _group(functions, _random(1000, 512, seed=5), _random(1536, seed=6), size)


SPECS = [
    Spec("towers/patch-embedding/vit-b-32-b8", patches, ("eager", "fastprompt")),
    Spec("towers/layer-norm-linear/w512-n1000", layer_norm, ("eager", "folded")),
]


@ladder(SPECS)
def test_fold(benchmark, spec, rung):
    replay(benchmark, spec, rung)
