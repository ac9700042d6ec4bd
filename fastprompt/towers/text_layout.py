"""Where a prompt's tokens stand: start token, context, class name, end, padding."""

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
    """The token ids of C class prompts, with room for M context tokens in each.

    Attributes:
        ids: ``[C, length]`` as the tokenizer pads them; a stand-in where the context goes.
        context: where it goes, ``[C, M]``: the places of context tokens 0..M-1.
        ends: the place of each end token, ``[C]``.
        start: 1 where the tokenizer puts a start token in front, else 0.
        leading: how many tokens stand before the first class name: start token and context.
    """

    ids: Tensor
    context: Tensor
    ends: Tensor
    start: int
    leading: int

    @property
    def length(self) -> int:
        """Tokens of a padded prompt."""
        return self.ids.shape[1]

    def trimmed(self) -> TextLayout:
        """Without what stands behind the longest prompt's end."""
        ids = self.ids[:, : int(self.ends.max()) + 1]
        return TextLayout(ids, self.context, self.ends, self.start, self.leading)


def _last_words(clip: FrozenCLIP, tokens: Tensor) -> Tensor:
    """The place of the last token of each text that is not padding."""
    pad = int(clip.tokenizer(["a"])[0, -1])  # what fills up a short text
    places = torch.arange(tokens.shape[1]).expand_as(tokens)
    return torch.where(tokens != pad, places, -1).amax(dim=1)


def text_ends(clip: FrozenCLIP, tokens: Tensor, pool_type: str, eos_id: int) -> Tensor:
    """The place of each text's end token, ``[N]``, as the text tower itself finds it.

    A tower that reads its first or last token looks for none: there it is the last token of the
    text, or, where the tokenizer ends a text by padding alone, the first of the padding.
    """
    if pool_type == "argmax":
        return tokens.argmax(dim=1)
    if pool_type == "eos":
        is_end = tokens == eos_id
        if not bool(is_end.any(dim=1).all()):
            raise ValueError(
                f"clip: {clip.name}: the text tower ends a text at eos_id {eos_id}, which the "
                "tokenizer never writes: hand in the tokenizer or the eos_id that belong together"
            )
        return is_end.int().argmax(dim=1)
    two = clip.tokenizer(["cat", "dog"])
    last = two.gather(1, _last_words(clip, two)[:, None])
    ends = _last_words(clip, tokens) + int(last[0] != last[1])
    return ends.clamp(max=tokens.shape[1] - 1)


def start_tokens(clip: FrozenCLIP) -> int:
    """1 where the tokenizer puts a start token in front of a text, else 0."""
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
    """Prompts such as ``[SOS, context, class name, ., EOS]``, as CoOp builds them.

    Args:
        clip: for its tokenizer and context length.
        classnames: C distinct names; underscores count as spaces.
        n_ctx: M, the number of context tokens; 0 leaves plain text.
        position: where the class name stands: behind the context, between its halves, before it.
        pool_type, eos_id: how the text tower finds the end of a text.

    Raises:
        ValueError: an unknown position, or a name that leaves no room for the context.
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
        # a name longer than the whole context was cut by the tokenizer: "at least" covers it
        raise ValueError(
            f"classnames: {names[longest]!r} needs at least {int(ends[longest]) - start} tokens; "
            f"{n_ctx} context tokens leave room for {max(0, limit - n_ctx - 1 - start)} "
            f"of {limit}: shorten the name or lower n_ctx"
        )
    before = n_ctx if position == "end" else n_ctx // 2 if position == "middle" else 0
    # where each name's own tokens end: the rest of the context follows there
    split = text_ends(clip, clip.tokenizer(names)[:, :limit], pool_type, eos_id)
    places = torch.arange(n_ctx)
    # behind the name: its tokens stand in start..split-1, moved by the first part of the context
    context = torch.where(places < before, start + places, split[:, None] + places)
    return _assemble(clip, tokens, context, ends + n_ctx, start, start + before)


def _assemble(
    clip: FrozenCLIP, tokens: Tensor, context: Tensor, ends: Tensor, start: int, leading: int
) -> TextLayout:
    """The rows of ``tokens`` with stand-ins at ``context``; as much padding falls off behind."""
    classes, length = tokens.shape
    stand_in = clip.tokenizer(["X"])[0, start]
    taken = torch.zeros(classes, length, dtype=torch.bool)
    taken.scatter_(1, context, torch.ones_like(context, dtype=torch.bool))
    # the k-th free place takes the row's k-th token
    order = (~taken).long().cumsum(dim=1) - 1
    ids = torch.where(taken, stand_in, tokens.gather(1, order.clamp(min=0)))
    return TextLayout(ids, context, ends, start, leading)


def word_context(clip: FrozenCLIP, words: str, n_ctx: int) -> Tensor:
    """Embeddings of the first tokens of ``words``, ``[at most n_ctx, text_width]``.

    Raises:
        ValueError: ``words`` holds no token, or the text tower takes no prompts.
    """
    parts, start = clip.text_parts, start_tokens(clip)
    tokens = clip.tokenizer([words])
    end = int(text_ends(clip, tokens, parts.pool_type, parts.eos_id))
    if end <= start:
        raise ValueError(f"ctx_init must hold a word, got {words!r}")
    kept = tokens[0, start : min(end, n_ctx + start)].to(clip.device)
    with torch.no_grad():
        embedded: Tensor = parts.token_embedding(kept)
    return embedded
