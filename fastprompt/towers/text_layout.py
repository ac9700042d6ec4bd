"""Positions of a prompt's tokens: start token, context, class name, end token, padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .._utils.checks import check_classnames
from ..clip.frozen import FrozenCLIP

Position = Literal["end", "middle", "front"]


@dataclass(frozen=True)
class TextLayout:
    """Token ids of C class prompts, each with M positions for context tokens.

    Attributes:
        ids: ``[C, length]``, padded by the tokenizer, with a placeholder at context positions.
        context: positions of context tokens 0..M-1, ``[C, M]``.
        ends: position of each end token, ``[C]``.
        start: 1 if the tokenizer adds a start token, else 0.
        leading: number of tokens before the class name: start token and context.
    """

    ids: Tensor
    context: Tensor
    ends: Tensor
    start: int
    leading: int

    @property
    def length(self) -> int:
        """Number of tokens of a padded prompt."""
        return self.ids.shape[1]

    def trimmed(self) -> TextLayout:
        """Return the layout without the padding after the longest prompt."""
        ids = self.ids[:, : int(self.ends.max()) + 1]
        return TextLayout(ids, self.context, self.ends, self.start, self.leading)


def _last_words(clip: FrozenCLIP, tokens: Tensor) -> Tensor:
    """Return the position of the last token of each text that is not padding."""
    pad = int(clip.tokenizer(["a"])[0, -1])  # a short text ends in padding
    places = torch.arange(tokens.shape[1]).expand_as(tokens)
    return torch.where(tokens != pad, places, -1).amax(dim=1)


def text_ends(clip: FrozenCLIP, tokens: Tensor, pool_type: str, eos_id: int) -> Tensor:
    """Return the position of each text's end token, ``[N]``, as the text encoder finds it.

    An encoder that pools the first or last token needs no end token. Then the result is the last
    token of the text or, if the tokenizer ends a text only by padding, the first padding token.
    """
    if pool_type == "argmax":
        return tokens.argmax(dim=1)
    if pool_type == "eos":
        is_end = tokens == eos_id
        if not bool(is_end.any(dim=1).all()):
            raise ValueError(
                f"clip: {clip.name}: the text encoder pools the token eos_id {eos_id}, which the "
                "tokenizer never produces; pass a matching tokenizer or eos_id"
            )
        return is_end.int().argmax(dim=1)
    two = clip.tokenizer(["cat", "dog"])
    last = two.gather(1, _last_words(clip, two)[:, None])
    ends = _last_words(clip, tokens) + int(last[0] != last[1])
    return ends.clamp(max=tokens.shape[1] - 1)


def start_tokens(clip: FrozenCLIP) -> int:
    """Return 1 if the tokenizer puts a start token before a text, else 0."""
    first = clip.tokenizer(["cat", "dog"])[:, 0]
    return int(first[0] == first[1])


def text_layout(
    clip: FrozenCLIP,
    classnames: Sequence[str],
    n_ctx: int,
    *,
    position: Position = "end",
    pool_type: str = "argmax",
    eos_id: int = 2,
) -> TextLayout:
    """Lay out prompts such as ``[SOS, context, class name, ., EOS]``, as in CoOp.

    Args:
        clip: the model, for its tokenizer and context length.
        classnames: C distinct class names; underscores become spaces.
        n_ctx: number of context tokens, M; 0 gives plain text.
        position: position of the class name: after the context, between its halves or before it.
        pool_type, eos_id: settings by which the text encoder finds the end of a text.

    Raises:
        ValueError: the position is unknown, or a class name leaves no room for the context.
    """
    if position not in get_args(Position):
        raise ValueError(f"position must be 'end', 'middle' or 'front', got {position!r}")
    names = check_classnames(classnames)
    tokens = clip.tokenizer([f"{n}." for n in names])
    limit = min(clip.context_length, tokens.shape[1])
    tokens = tokens[:, :limit]
    ends = text_ends(clip, tokens, pool_type, eos_id)
    start = start_tokens(clip)
    longest = int(ends.argmax())
    if int(ends[longest]) + 1 + n_ctx > limit:
        # "at least", since the tokenizer cuts a name that is longer than the context length
        raise ValueError(
            f"classnames: {names[longest]!r} needs at least {int(ends[longest]) - start} tokens, "
            f"but {n_ctx} context tokens leave room for {max(0, limit - n_ctx - 1 - start)} "
            f"of the {limit}; shorten the name or lower n_ctx"
        )
    before = n_ctx if position == "end" else n_ctx // 2 if position == "middle" else 0
    # position after each class name's last token, where the rest of the context follows
    split = text_ends(clip, clip.tokenizer(names)[:, :limit], pool_type, eos_id)
    places = torch.arange(n_ctx)
    # the name's tokens, in start..split-1, are shifted by the first part of the context
    context = torch.where(places < before, start + places, split[:, None] + places)
    return _assemble(clip, tokens, context, ends + n_ctx, start, start + before)


def _assemble(
    clip: FrozenCLIP, tokens: Tensor, context: Tensor, ends: Tensor, start: int, leading: int
) -> TextLayout:
    """Insert a placeholder at each ``context`` position; drop as many tokens of padding."""
    classes, length = tokens.shape
    stand_in = clip.tokenizer(["X"])[0, start]
    taken = torch.zeros(classes, length, dtype=torch.bool)
    taken.scatter_(1, context, torch.ones_like(context, dtype=torch.bool))
    # the k-th free position gets the row's k-th token
    order = (~taken).long().cumsum(dim=1) - 1
    ids = torch.where(taken, stand_in, tokens.gather(1, order.clamp(min=0)))
    return TextLayout(ids, context, ends, start, leading)


def word_context(clip: FrozenCLIP, words: str, n_ctx: int) -> Tensor:
    """Embed the first tokens of ``words``, ``[at most n_ctx, text_width]``.

    Raises:
        ValueError: ``words`` has no token, or the text encoder does not support prompts.
    """
    parts, start = clip.text_parts, start_tokens(clip)
    tokens = clip.tokenizer([words])
    end = int(text_ends(clip, tokens, parts.pool_type, parts.eos_id))
    if end <= start:
        raise ValueError(f"ctx_init must contain at least one word, got {words!r}")
    kept = tokens[0, start : min(end, n_ctx + start)].to(clip.device)
    with torch.no_grad():
        embedded: Tensor = parts.token_embedding(kept)
    return embedded
