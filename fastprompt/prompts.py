"""What learns."""

import torch
from torch import Tensor, nn

from ._checks import check_count


class TextContext(nn.Module):
    """Context tokens that stand between the start token and the class name, shared by all classes.

    Args:
        n_ctx: M, the number of tokens.
        width: the text tower's width.
        seed: of the start values, N(0, 0.02) (CoOp, Zhou et al., IJCV 2022).
        start: start values of the first tokens instead, ``[at most M, width]``, such as the
            embeddings of words.
    """

    def __init__(
        self, n_ctx: int, width: int, *, seed: int = 0, start: Tensor | None = None
    ) -> None:
        super().__init__()
        check_count(n_ctx, "n_ctx")
        generator = torch.Generator().manual_seed(seed)
        tokens = 0.02 * torch.randn(n_ctx, width, generator=generator)
        if start is not None:
            tokens[: len(start)] = start.detach()
        self.tokens = nn.Parameter(tokens)

    def forward(self) -> Tensor:
        """The tokens, ``[M, width]``."""
        return self.tokens
