"""Groups of each kernel and its formula: inputs, timed functions, compared tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastprompt.kernels import (
    apgd_step,
    consistency_loss,
    layer_consistency,
    mixture_logits,
    pgd_step,
    prefix_attention,
    random_start,
)
from fastprompt.kernels._dispatch import Impl
from fastprompt.kernels.consistency_loss import reference as consistency_reference
from fastprompt.kernels.layer_consistency import reference as layers_reference
from fastprompt.kernels.mixture_logits import reference as mixture_reference
from fastprompt.kernels.pgd_step import reference as step_reference

from ..common.sizes import DEVICE
from ..common.timing import count_flops
from .group import Group

ALPHA, EPS = 2 / 255, 8 / 255


# formulas as functions of tensors, and alternative implementations of them


def mixture_formula(*inputs: Tensor) -> Tensor:
    """AMPT's logits ``[B, C]``, with a text feature for each image and class."""
    return mixture_reference.mixture_logits(*inputs)[0]


def layers_formula(*features: Tensor) -> Tensor:
    """NAP's distance ``[B]`` between the first and the second half of ``features``."""
    half = len(features) // 2
    return layers_reference.layer_consistency(features[:half], features[half:])


def consistency_formula(adv: Tensor, clean: Tensor, frozen: Tensor, labels: Tensor) -> Tensor:
    """CAPT's loss ``[B]`` with equal weights."""
    return consistency_reference.consistency_loss(adv, clean, frozen, labels, alpha=0.5)[0]


def gram_mixture(f: Tensor, t: Tensor, router: Tensor, s: Tensor) -> Tensor:
    """AMPT's logits computed with the Gram matrix."""
    weights = router.float().softmax(-1)
    t = F.normalize(t, dim=-1)
    gram = torch.einsum("kcd,lcd->klc", t, t).float()
    products = torch.einsum("bd,kcd->bkc", f, t).float()
    square = torch.einsum("bk,bl,klc->bc", weights, weights, gram)
    return s * torch.einsum("bk,bkc->bc", weights, products) * square.rsqrt()


def copied_prefix(
    q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor, mask: Tensor
) -> Tensor:
    """Fused attention with a copied prefix before each padded class: ``[C, H, S, d]``."""
    keys, values = (
        torch.cat([p.transpose(1, 2).expand(len(q), -1, -1, -1), own], dim=2)
        for p, own in ((prefix_k, k), (prefix_v, v))
    )
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)


def uniform_start(x: Tensor, eps: float) -> Tensor:
    """Uniform random start in the ball, drawn by torch's generator."""
    return torch.clamp(x + torch.empty_like(x).uniform_(-eps, eps), min=0, max=1)


def _all(tensors: Sequence[Tensor]) -> list[Tensor]:
    return list(tensors)


@dataclass(frozen=True)
class Way:
    """A function of tensors with its inputs.

    Attributes:
        direction: the output gradient.
        compared: converts outputs and gradients into a form that all ways share.
    """

    function: Callable[..., Tensor | tuple[Tensor, ...]]
    inputs: Sequence[Tensor]
    direction: Tensor
    compared: Callable[[Sequence[Tensor]], list[Tensor]] = _all

    @property
    def learning(self) -> list[Tensor]:
        return [x for x in self.inputs if x.requires_grad]

    def forward(self) -> tuple[Tensor, ...]:
        """Return the outputs without recording a graph."""
        with torch.no_grad():
            out = self.function(*self.inputs)
        return out if isinstance(out, tuple) else (out,)

    def both(self) -> tuple[Tensor, ...]:
        """Return output and gradients."""
        out = self.function(*self.inputs)
        assert isinstance(out, Tensor)
        return (out.detach(), *torch.autograd.grad(out, self.learning, self.direction))

    def results(self) -> dict[str, Tensor]:
        """Return the tensors of the equality check."""
        found = self.both() if self.learning else self.forward()
        return {f"tensor {i}": x for i, x in enumerate(self.compared(found))}


def group(
    ways: dict[str, Way], backward: bool, compiled: bool, moved: int | None, size: dict[str, Any]
) -> Group:
    """Build the group of ``eager``, optionally ``compiled``, and ``fastprompt``."""
    eager = ways["eager"]
    if compiled:
        function = torch.compile(eager.function, dynamic=False)
        made = Way(function, eager.inputs, eager.direction, eager.compared)
        ways = {"eager": eager, "compiled": made, "fastprompt": ways["fastprompt"]}
    rungs = {name: way.both if backward else way.forward for name, way in ways.items()}
    results = {name: way.results() for name, way in ways.items()}
    size = size | {"backward": backward}
    # compiled code computes the formula's products
    counted = {"compiled": "eager"}

    def flops(rung: str) -> int:
        return count_flops(rungs[counted.get(rung, rung)])

    return Group(rungs, results, rounds=3, warmup=2, flops=flops, moved=moved, size=size)


def _random(*shape: int, seed: int = 0, learning: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE).requires_grad_(learning)


def mixture(n_images: int, classes: int, prompts: int, width: int = 512, **how: Any) -> Group:
    """Router softmax, mixture and logits."""
    # the prompts of a class have similar features, as in CLIP
    text = _random(prompts, classes, width, seed=1) + _random(classes, width, seed=2)
    inputs = [
        F.normalize(_random(n_images, width), dim=1).requires_grad_(),
        text.requires_grad_(),
        _random(n_images, prompts, seed=3, learning=True),
        torch.tensor(100.0, device=DEVICE, requires_grad=True),
    ]
    direction = _random(n_images, classes, seed=4)
    ways = {
        "eager": Way(mixture_formula, inputs, direction),
        "fastprompt": Way(mixture_logits, inputs, direction),
    }
    size = {"batch": n_images, "classes": classes, "prompts": prompts, "width": width}
    return group(ways, moved=None, size=size, **how)


def attention(
    classes: int, prefix: int = 17, heads: int = 8, head_width: int = 64, **how: Any
) -> Group:
    """Class names of 2 to 8 tokens after a prefix, against fused attention on its copies."""
    lengths = [2 + i % 7 for i in range(classes)]
    longest, total = max(lengths), sum(lengths)
    used = (torch.arange(longest)[None] < torch.tensor(lengths)[:, None]).to(DEVICE)  # [C, S]
    mask = torch.ones(longest, prefix + longest, dtype=torch.bool, device=DEVICE).tril(prefix)
    cu = torch.tensor([0, *lengths]).cumsum(0).to(DEVICE, torch.int32)
    packed = [_random(1, total, heads, head_width, seed=i, learning=True) for i in range(3)]
    front = [_random(1, prefix, heads, head_width, seed=5 + i, learning=True) for i in range(2)]

    def padded(x: Tensor) -> Tensor:
        wide = torch.zeros(classes, longest, heads, head_width, device=DEVICE)
        wide[used] = x.detach()[0]
        return wide.transpose(1, 2).contiguous()  # [C, H, S, d]

    def unpadded(found: Sequence[Tensor]) -> list[Tensor]:
        # output and three gradients of packed tensors; the prefix's gradients are unchanged
        return [x.transpose(1, 2)[used][None] if x.shape[0] == classes else x for x in found]

    direction = _random(1, total, heads, head_width, seed=9)
    wide = [padded(x).requires_grad_() for x in packed]
    ways = {
        "eager": Way(
            partial(copied_prefix, mask=mask), [*wide, *front], padded(direction), unpadded
        ),
        "fastprompt": Way(
            lambda *inputs: prefix_attention(*inputs, cu), [*packed, *front], direction
        ),
    }
    size = {"classes": classes, "tokens": total, "prefix": prefix, "heads": heads}
    return group(ways, moved=None, size=size, **how)


def layers(
    n_images: int, n_layers: int = 12, tokens: int = 66, width: int = 768, **how: Any
) -> Group:
    """NAP's distance of all layers' features."""
    features = [
        _random(n_images, tokens, width, seed=i, learning=True) for i in range(2 * n_layers)
    ]

    def fast(*all_layers: Tensor) -> Tensor:
        return layer_consistency(all_layers[:n_layers], all_layers[n_layers:])

    direction = _random(n_images, seed=99)
    ways = {
        "eager": Way(layers_formula, features, direction),
        "fastprompt": Way(fast, features, direction),
    }
    read = sum(x.numel() * x.itemsize for x in features)
    size = {"batch": n_images, "layers": n_layers, "tokens": tokens, "width": width}
    # backward reads the features again and writes the gradients
    return group(ways, moved=read * (3 if how["backward"] else 1), size=size, **how)


def consistency(n_images: int, classes: int, **how: Any) -> Group:
    """CAPT's loss from three matrices of logits."""
    adv, clean, frozen = (20 * _random(n_images, classes, seed=i) for i in range(3))
    labels = torch.arange(n_images, device=DEVICE) % classes
    inputs = [adv.requires_grad_(), clean, frozen, labels]

    def fast(adv: Tensor, clean: Tensor, frozen: Tensor, labels: Tensor) -> Tensor:
        return consistency_loss(adv, clean, frozen, labels, alpha=0.5)

    direction = _random(n_images, seed=9)
    ways = {
        "eager": Way(consistency_formula, inputs, direction),
        "fastprompt": Way(fast, inputs, direction),
    }
    read = 3 * adv.numel() * adv.itemsize
    size = {"batch": n_images, "classes": classes}
    return group(ways, moved=read * 7 // 3 if how["backward"] else read, size=size, **how)


def _pictures(n_images: int, image_size: int) -> tuple[Tensor, dict[str, Any]]:
    x = torch.rand(n_images, 3, image_size, image_size, device=DEVICE)
    return x, {"batch": n_images, "image_size": image_size}


def _steps(
    eager: Callable[..., Any], fast: Callable[..., Any], inputs: Sequence[Tensor], **named: Any
) -> dict[str, Way]:
    x, named = inputs[0], {"eps": EPS, **named}
    functions = {"eager": partial(eager, **named), "fastprompt": partial(fast, **named)}
    return {name: Way(function, inputs, x) for name, function in functions.items()}


def sign_step(n_images: int, image_size: int = 224, **how: Any) -> Group:
    """PGD's step on images."""
    x, size = _pictures(n_images, image_size)
    inputs = [(x + 0.01).clamp(0, 1), x, _random(*x.shape)]
    ways = _steps(step_reference.pgd_step, pgd_step, inputs, alpha=ALPHA)
    return group(ways, moved=4 * x.numel() * x.itemsize, size=size, **how)


def two_point_step(n_images: int, image_size: int = 224, **how: Any) -> Group:
    """APGD's step, with a step size for each image."""
    x, size = _pictures(n_images, image_size)
    inputs = [(x + 0.01).clamp(0, 1), (x - 0.01).clamp(0, 1), x, _random(*x.shape)]
    alpha = torch.full((n_images,), ALPHA, device=DEVICE)
    ways = _steps(step_reference.apgd_step, apgd_step, inputs, alpha=alpha)
    return group(ways, moved=5 * x.numel() * x.itemsize, size=size, **how)


def start(n_images: int, image_size: int = 224, **how: Any) -> Group:
    """Random start of an attack, compared with torch's generator.

    Both draw uniform noise in the ball, but not the same noise: the equality check compares the
    kernel's noise with the plain code's.
    """
    x, size = _pictures(n_images, image_size)
    indices = torch.arange(n_images, device=DEVICE)
    key = torch.tensor([0, 0], device=DEVICE)

    def fast(x: Tensor, impl: Impl = "auto") -> Tensor:
        return random_start(x, indices, key, eps=EPS, impl=impl)

    ways = {
        "eager": Way(partial(uniform_start, eps=EPS), [x], x),
        "fastprompt": Way(fast, [x], x),
    }
    made = group(ways, moved=2 * x.numel() * x.itemsize, size=size, **how)
    results = {"eager": {"start": fast(x, "torch")}, "fastprompt": {"start": fast(x)}}
    return replace(made, results=results)
