"""Types shared by several subpackages."""

from collections.abc import Callable

from torch import Tensor

Model = Callable[[Tensor], Tensor]  # pixels [B, C, H, W] in [0, 1] to logits [B, C]
