"""Features of plain texts, without computing their padding and their equal beginnings."""

from __future__ import annotations

import torch
from torch import Tensor

from ..clip.frozen import FrozenCLIP
from ..clip.parts import why_no_text_prompts
from .compare import exact_engine, same
from .text import TextTower
from .text_layout import TextLayout, text_ends

_CHUNK = 1024  # texts encoded at once, without a graph


def plain_layout(clip: FrozenCLIP, tokens: Tensor) -> TextLayout:
    """Lay out tokenized texts ``[N, T]`` without context tokens."""
    ends = text_ends(clip, tokens)
    equal = (tokens == tokens[:1]).all(dim=0).long().cumprod(dim=0)
    # each text keeps a token of its own: the shared tokens have no output in the last layer
    shared = min(int(equal.sum()), int(ends.min()))
    return TextLayout(tokens, torch.empty(len(tokens), 0, dtype=torch.int64), ends, shared)


@torch.no_grad()
def encode_plain(clip: FrozenCLIP, tokens: Tensor) -> Tensor:
    """Encode tokenized texts ``[N, T]`` to unnormalized features ``[N, D]``.

    The fast text tower is used if it reproduces the model's own features. The longest text is
    encoded by both, since hooks and methods may have changed after the model was loaded.
    """
    if why_no_text_prompts(clip.model) or exact_engine(clip, "text", "fast") != "fast":
        return clip.encode_tokens(tokens)
    layout = plain_layout(clip, tokens)
    tower = TextTower(clip, (), 0, layout=layout, class_chunk=_CHUNK, whole=None)
    context = torch.empty(tower.context_shape, dtype=clip.dtype, device=clip.device)
    longest = int(layout.ends.argmax())
    expected = clip.encode_tokens(tokens[longest : longest + 1])
    features = tower(context).to(expected.dtype)
    return (
        features
        if same(clip, features[longest : longest + 1], expected)
        else clip.encode_tokens(tokens)
    )
