"""Base class of the image towers of both engines: layers that have prompts, checks of shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from ..clip.frozen import FrozenCLIP
from ..clip.parts import image_width, why_no_visual_prompts
from .base import Tower

Refiners = Sequence[Callable[[Tensor], Tensor]]


class PromptedImage(Tower):
    """Image tower: computes features from pixels, visual prompts and token refiners.

    Prompt tokens follow the patch tokens and have no positional embedding. Those of layer 0 are
    appended before the encoder's first LayerNorm; those of a later layer replace the previous
    prompt tokens, if any, before that layer's block. The prompt tokens of the last such layer pass
    through the remaining blocks. Refiners act on the class and patch tokens before every block but
    the first (NAP's order). Average pooling excludes prompt tokens.

    Args:
        clip: the frozen model.
        layers: indices of the layers that have prompts, in increasing order; by default none.

    Raises:
        ValueError: the image encoder does not support visual prompts (the message says why), or has
            no such layer.
    """

    def __init__(self, clip: FrozenCLIP, layers: Sequence[int] = ()) -> None:
        super().__init__(clip)
        if reason := why_no_visual_prompts(clip.model):
            raise ValueError(f"clip: {clip.name} does not support visual prompts: {reason}")
        if not isinstance(layers, Iterable):
            raise TypeError(
                f"layers must be a list of layer indices such as range(3), got {layers!r}"
            )
        self.layers = out = tuple(int(i) for i in layers)
        if list(out) != sorted(set(out)):
            raise ValueError(f"layers must be strictly increasing, got {list(out)}")
        visual: Any = clip.model.visual
        self.depth = len(visual.transformer.resblocks)
        if out and not 0 <= out[0] <= out[-1] < self.depth:
            raise ValueError(
                f"layers must be in 0..{self.depth - 1}, as the image tower of {clip.name} has "
                f"{self.depth} layers, got {list(out)}; lower the prompt depth"
            )

    def check(self, prompts: Tensor | None, refiners: Refiners | None) -> None:
        """Raise the errors of `forward` about prompts and refiners."""
        got = None if prompts is None else list(prompts.shape)
        layers, width = len(self.layers), image_width(self.clip.model)
        if (got is not None or layers) and (
            got is None or len(got) != 3 or (got[0], got[2]) != (layers, width)
        ):
            raise ValueError(f"prompts must be [{layers}, V, {width}], got {got}")
        if refiners is not None and len(refiners) >= self.depth:
            raise ValueError(
                f"refiners must have at most {self.depth - 1} modules, one for each block but the "
                f"first, got {len(refiners)}"
            )
