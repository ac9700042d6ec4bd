"""Positions of a prompt's tokens: start token, context, class name, end token, padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._utils.checks import check_classnames
from ..clip.frozen import FrozenCLIP
from .template import DEFAULT, parse_template


@dataclass(frozen=True)
class TextLayout:
    """Token ids of C class prompts, each with M positions for context tokens.

    Attributes:
        ids: ``[C, length]``, padded by the tokenizer, with a placeholder at context positions.
        context: positions of context tokens 0..M-1, ``[C, M]``.
        ends: position of each end token, ``[C]``.
        leading: number of tokens before the class name: start token, context, fixed words.
    """

    ids: Tensor
    context: Tensor
    ends: Tensor
    leading: int

    @property
    def length(self) -> int:
        """Number of tokens of a padded prompt."""
        return self.ids.shape[1]

    def trimmed(self) -> TextLayout:
        """Return the layout without the padding after the longest prompt."""
        ids = self.ids[:, : int(self.ends.max()) + 1]
        return TextLayout(ids, self.context, self.ends, self.leading)

    def shared(self, class_specific: bool) -> int:
        """Return the number of first tokens that are equal for all classes."""
        if class_specific and self.context.shape[1]:
            return min(self.leading, int(self.context[0, 0]))
        return self.leading

    def before_context(self, length: int) -> int:
        """Return the number of the first ``length`` tokens before the first context token."""
        return min([length, *self.context[0].tolist()])


def _last_words(clip: FrozenCLIP, tokens: Tensor) -> Tensor:
    """Return the position of the last token of each text that is not padding."""
    pad = int(clip.tokenizer(["a"])[0, -1])  # a short text ends in padding
    places = torch.arange(tokens.shape[1]).expand_as(tokens)
    return torch.where(tokens != pad, places, -1).amax(dim=1)


def text_ends(clip: FrozenCLIP, tokens: Tensor) -> Tensor:
    """Return the position of each text's end token, ``[N]``, as the text encoder finds it.

    An encoder that pools the first or last token needs no end token. Then the result is the last
    token of the text or, if the tokenizer ends a text only by padding, the first padding token.
    """
    parts = clip.text_parts
    if parts.pool_type == "argmax":
        return tokens.argmax(dim=1)
    if parts.pool_type == "eos":
        is_end = tokens == parts.eos_id
        if not bool(is_end.any(dim=1).all()):
            raise ValueError(
                f"clip: {clip.name}: the text encoder pools the token eos_id {parts.eos_id}, which "
                "the tokenizer never produces; pass a matching tokenizer or eos_id"
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
    clip: FrozenCLIP, classnames: Sequence[str], n_ctx: int, *, template: str = DEFAULT
) -> TextLayout:
    """Lay out prompts such as ``[SOS, context, class name, ., EOS]``, as in CoOp.

    Args:
        clip: the model, for its tokenizer and context length.
        classnames: C distinct class names; underscores become spaces.
        n_ctx: number of context tokens, M; 0 gives plain text.
        template: positions of context, fixed words and class name, see `parse_template`. In two
            halves, the first has ``M // 2`` tokens.

    Raises:
        ValueError: the template is not valid, or a class name leaves no room for the context.
    """
    form, names = parse_template(template), check_classnames(classnames)
    limit = clip.context_length

    def ends_of(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokens = clip.tokenizer(list(texts))[:, :limit]
        return tokens, text_ends(clip, tokens)

    tokens, ends = ends_of([form.text(name) for name in names])
    limit, start = tokens.shape[1], start_tokens(clip)
    longest = int(ends.argmax())
    if int(ends[longest]) + 1 + n_ctx > limit:
        # "at least", since the tokenizer cuts a name that is longer than the context length
        raise ValueError(
            f"classnames: {names[longest]!r} in {template!r} needs at least "
            f"{int(ends[longest]) - start} tokens, but {n_ctx} context tokens leave room for "
            f"{max(0, limit - n_ctx - 1 - start)} of the {limit}; shorten the name or the "
            "template, or lower n_ctx"
        )
    before = [torch.full((len(names),), start)] * form.markers  # tokens before each [ctx]
    for marker in range(form.markers):
        texts = [form.preceding(marker, name) for name in names]
        if texts[0]:
            before[marker] = ends_of(texts)[1]
    halves = [n_ctx] if form.markers == 1 else [n_ctx // 2, n_ctx - n_ctx // 2]
    starts = [at[:, None].expand(-1, n) for at, n in zip(before, halves, strict=True)]
    context = torch.cat(starts, dim=1) + torch.arange(n_ctx)
    words = int(ends_of([form.leading])[1]) if form.leading else start
    leading = words + sum(halves[: len(form.before) - 1])
    return _assemble(clip, tokens, context, ends + n_ctx, start, leading)


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
    # a tokenizer may split the words before a class name differently for some of the names
    equal = (ids == ids[:1]).all(dim=0)[:leading]
    return TextLayout(ids, context, ends, int(equal.long().cumprod(dim=0).sum()))


def word_tokens(clip: FrozenCLIP, words: str) -> Tensor:
    """Return the token ids of ``words``, without start and end token."""
    tokens = clip.tokenizer([words])
    return tokens[0, start_tokens(clip) : int(text_ends(clip, tokens))]


def word_context(clip: FrozenCLIP, words: str) -> Tensor:
    """Embed the tokens of ``words``, ``[tokens, text_width]``; underscores become spaces.

    Raises:
        ValueError: ``words`` has no token, or the text encoder does not support prompts.
    """
    tokens = word_tokens(clip, words.replace("_", " ")).to(clip.device)
    if not len(tokens):
        raise ValueError(f"ctx_init must contain at least one word, got {words!r}")
    with torch.no_grad():
        embedded: Tensor = clip.text_parts.token_embedding(tokens)
    return embedded
