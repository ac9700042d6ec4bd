"""Trainable context tokens of a text prompt."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._utils.checks import MOST_CLASSES, MOST_TOKENS, MOST_WIDTH, check_count, check_seed
from .init import check_start, normal
from .values import PromptValues


class TextContext(nn.Module):
    """Trainable context tokens, by default between the start token and the class name.

    Args:
        n_ctx: number of context tokens, M.
        width: width of the text encoder.
        classes: number of classes, C, for a separate context per class; None for a shared context.
        seed: seed of the initial values, N(0, 0.02) (CoOp, Zhou et al., IJCV 2022).
        start: initial values of the first tokens instead, ``[at most M, width]``, such as word
            embeddings.
    """

    def __init__(
        self,
        n_ctx: int,
        width: int,
        *,
        classes: int | None = None,
        seed: int = 0,
        start: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_count(n_ctx, "n_ctx", most=MOST_TOKENS)
        check_count(width, "width", most=MOST_WIDTH)
        own = () if classes is None else (check_count(classes, "classes", most=MOST_CLASSES),)
        check_seed(seed)
        check_start(start, n_ctx, width)
        tokens = normal(torch.Generator().manual_seed(seed), *own, n_ctx, width)
        if start is not None:
            tokens[..., : len(start), :] = start.detach()
        self.tokens = nn.Parameter(tokens)

    def forward(self) -> Tensor:
        """Return the tokens, ``[M, width]`` or ``[C, M, width]``."""
        return self.tokens

    def values(self) -> PromptValues:
        """Return the inputs to the towers."""
        return PromptValues(self.tokens)
