"""Token refiners: small networks that purify tokens in front of a block (NAP)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._utils.checks import check_choice
from .._utils.seeds import stream
from .init import uniform

RefinerStart = Literal["identity", "linear"]


class TokenRefiner(nn.Module):
    """``x + W2 ReLU(W1 x)``: purifies the tokens in front of a block (NAP's neural augmentor).

    Args:
        width: d, of a token; the hidden layer has 2 d.
        start: ``"identity"`` starts with ``W2`` at zero; ``"linear"`` starts both layers as
            `nn.Linear` does, as the authors have it.
        seed: of the start values.
    """

    def __init__(self, width: int, *, start: RefinerStart = "identity", seed: int = 0) -> None:
        super().__init__()
        check_choice(start, "start", get_args(RefinerStart))
        generator = torch.Generator().manual_seed(seed)
        self.first, self.second = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        with torch.no_grad():
            for layer in (self.first, self.second):
                layer.weight.copy_(uniform(generator, layer.in_features, *layer.weight.shape))
                layer.bias.copy_(uniform(generator, layer.in_features, *layer.bias.shape))
            if start == "identity":
                self.second.weight.zero_(), self.second.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[..., width]`` to the same, computed in the tokens' precision."""
        first, second = (
            (m.weight.to(x.dtype), m.bias.to(x.dtype)) for m in (self.first, self.second)
        )
        return x + F.linear(F.linear(x, *first).relu(), *second)


def make_refiners(
    count: int, width: int, seed: int, part: str, start: RefinerStart
) -> nn.ModuleList | None:
    if not count:
        return None
    seeds = (stream(seed, part, i) for i in range(count))
    return nn.ModuleList(TokenRefiner(width, start=start, seed=own) for own in seeds)
