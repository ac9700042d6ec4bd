"""Prompts in the input embeddings of a Hugging Face text model, cut to the longest prompt."""

from torch import Tensor, nn

from .._utils.attention import attention_kernel
from ..clip.parts import HFTextParts
from .base import keep
from .text_layout import TextLayout
from .text_whole import put


class OpenHF:
    """Parts of a Hugging Face text model, shared by all modules that use them."""

    parts: HFTextParts


class HFChunk(nn.Module):
    """Complete prompts of some classes, passed to the model as ``inputs_embeds``.

    Args:
        text: the text encoder's parts.
        layout: layout of all prompts; padding is masked and may be cut off.
        rows: classes of this chunk, ``[C]``.
    """

    order: Tensor
    ids: Tensor
    places: Tensor

    def __init__(self, text: OpenHF, layout: TextLayout, rows: Tensor) -> None:
        super().__init__()
        self.text = text
        keep(self, order=rows, ids=layout.ids[rows], places=layout.context[rows])

    def forward(self, context: Tensor, deep: None, refiners: None) -> Tensor:
        """Compute features ``[K, C, D]`` of a context ``[K, M, W]`` or ``[K, all C, M, W]``."""
        parts = self.text.parts
        own = context[:, self.order] if context.ndim == 4 else context[:, None]
        x = parts.token_embedding(self.ids)
        x = put(x.expand(len(context), -1, -1, -1), self.places, own)  # [K, C, T, W]
        with attention_kernel(x.device):
            features = parts.encode(x.flatten(0, 1), self.ids.repeat(len(context), 1))
        return features.unflatten(0, (len(context), -1))
