"""Token refiners: small networks that purify the tokens before a block (NAP)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._utils.checks import MOST_WIDTH, check_choice, check_count, check_seed
from .._utils.seeds import stream
from .init import uniform

RefinerStart = Literal["identity", "linear"]


class TokenRefiner(nn.Module):
    """Purify the tokens before a block by ``x + W2 ReLU(W1 x)`` (NAP's neural augmentor).

    Args:
        width: width of a token, d; the hidden layer has width 2 d.
        start: ``"identity"`` initializes ``W2`` to zero; ``"linear"`` initializes both layers as
            `nn.Linear` does, like NAP's authors.
        seed: seed of the initial values.
    """

    def __init__(self, width: int, *, start: RefinerStart = "identity", seed: int = 0) -> None:
        super().__init__()
        check_count(width, "width", most=MOST_WIDTH)
        check_choice(start, "start", get_args(RefinerStart))
        check_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        self.first, self.second = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        with torch.no_grad():
            for layer in (self.first, self.second):
                layer.weight.copy_(uniform(generator, layer.in_features, *layer.weight.shape))
                layer.bias.copy_(uniform(generator, layer.in_features, *layer.bias.shape))
            if start == "identity":
                self.second.weight.zero_(), self.second.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Refine tokens ``[..., width]``, computing in their precision."""
        return refine(x, *self.weights(x.dtype))

    def weights(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Return W1, its bias, W2 and its bias in ``dtype``, with a graph to the parameters."""
        layers = (self.first, self.second)
        return tuple(t.to(dtype) for layer in layers for t in (layer.weight, layer.bias))


def refine(x: Tensor, first: Tensor, bias: Tensor, second: Tensor, last_bias: Tensor) -> Tensor:
    """Compute `TokenRefiner` of ``x [..., width]`` with its `TokenRefiner.weights`."""
    return x + F.linear(F.linear(x, first, bias).relu(), second, last_bias)


def make_refiners(
    count: int, width: int, seed: int, part: str, start: RefinerStart
) -> nn.ModuleList | None:
    if not count:
        return None
    seeds = (stream(seed, part, i) for i in range(count))
    return nn.ModuleList(TokenRefiner(width, start=start, seed=own) for own in seeds)
