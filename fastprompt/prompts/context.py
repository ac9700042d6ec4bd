"""A text context: tokens in front of the class name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._utils.checks import check_count
from .init import normal
from .values import PromptValues


class TextContext(nn.Module):
    """Context tokens that stand between the start token and the class name.

    Args:
        n_ctx: M, the number of tokens.
        width: the text tower's width.
        classes: C, for one context a class; None is one context for all.
        seed: of the start values, N(0, 0.02) (CoOp, Zhou et al., IJCV 2022).
        start: start values of the first tokens instead, ``[at most M, width]``, such as the
            embeddings of words.
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
        check_count(n_ctx, "n_ctx")
        own = () if classes is None else (check_count(classes, "classes"),)
        tokens = normal(torch.Generator().manual_seed(seed), *own, n_ctx, width)
        if start is not None:
            tokens[..., : len(start), :] = start.detach()
        self.tokens = nn.Parameter(tokens)

    def forward(self) -> Tensor:
        """The tokens, ``[M, width]`` or ``[C, M, width]``."""
        return self.tokens

    def values(self) -> PromptValues:
        """What goes into the towers."""
        return PromptValues(self.tokens)
