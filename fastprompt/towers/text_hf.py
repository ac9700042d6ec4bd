"""Prompts in a Hugging Face text model: put among its input embeddings, cut to the longest."""

from torch import Tensor, nn

from ..clip.parts import HFTextParts
from .text_layout import TextLayout
from .text_whole import put


class OpenHF:
    """A Hugging Face text model's parts, shared by all that compute with them."""

    parts: HFTextParts


class HFChunk(nn.Module):
    """Whole prompts of some classes, through ``inputs_embeds``.

    Args:
        text: holds the text tower's parts.
        layout: of all prompts; padding is masked, so that it may be cut off.
        rows: the classes of this chunk, ``[C]``.
    """

    order: Tensor
    ids: Tensor
    places: Tensor

    def __init__(self, text: OpenHF, layout: TextLayout, rows: Tensor) -> None:
        super().__init__()
        self.text = text
        self.register_buffer("order", rows, persistent=False)
        self.register_buffer("ids", layout.ids[rows], persistent=False)
        self.register_buffer("places", layout.context[rows], persistent=False)

    def forward(self, context: Tensor, deep: None, refiners: None) -> Tensor:
        """Features ``[K, C, D]`` of a context ``[K, M, width]`` or ``[K, all C, M, width]``."""
        parts = self.text.parts
        own = context[:, self.order] if context.ndim == 4 else context[:, None]
        x = parts.token_embedding(self.ids)
        x = put(x.expand(len(context), -1, -1, -1), self.places, own)  # [K, C, T, W]
        features = parts.encode(x.flatten(0, 1), self.ids.repeat(len(context), 1))
        return features.unflatten(0, (len(context), -1))
