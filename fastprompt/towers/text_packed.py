"""Causal text encoder on class prompts: one shared prefix, packed suffixes.

Attention is causal, so the states of the tokens before the class name are equal for all classes in
every layer and are computed once. Those before the first context token don't depend on the prompts:
with deep prompts or without context in the prefix, and without refiners, they are computed once for
the weights. Tokens after a prompt's end token can't affect it and are dropped. The last layer is
computed only for the end tokens.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .._utils.attention import attend, causal_mask
from ..kernels import prefix_attention, token_classes
from .base import keep
from .blocks import OpenText
from .image_base import Refiners
from .text_layout import TextLayout
from .text_whole import other_places


class PackedChunk(nn.Module):
    """Suffixes of some class prompts without padding: N tokens, prompts sorted by length.

    Args:
        text: `OpenText`, the text encoder's parts and blocks.
        layout: layout of all prompts.
        rows: classes of this chunk, ``[C]``.
        prefix: number of tokens of the shared prefix, P.

    Attributes:
        order: classes in the packed order, ``[C]``.
        ids, positions: token ids and their positions in the prompt, ``[N]``.
        cu_seqlens: packed index of each prompt's first token, followed by N, ``[C + 1]``.
        classes: index of each token's class in ``order``, ``[N]``.
        ends: packed index of each prompt's last token, ``[C]``.
        context: packed indices of context tokens, ``[n]``; empty if all are in the prefix.
        others: the other packed indices, ``[N - n]``.
        sources, owners: for each entry of the attribute ``context``, the token's index in its
            prompt's context, and its class, ``[n]``.
    """

    order: Tensor
    ids: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    classes: Tensor
    ends: Tensor
    context: Tensor
    others: Tensor
    sources: Tensor
    owners: Tensor

    def __init__(self, text: OpenText, layout: TextLayout, rows: Tensor, prefix: int) -> None:
        super().__init__()
        self.text = text
        lengths = layout.ends[rows] + 1 - prefix
        order = rows[lengths.argsort(stable=True)]
        lengths = layout.ends[order] + 1 - prefix
        places = torch.arange(layout.length)
        used = (places >= prefix) & (places <= layout.ends[order][:, None])  # [C, length]
        number = torch.full(used.shape, -1)  # of the context token at each position
        n_ctx = layout.context.shape[1]
        number.scatter_(1, layout.context[order], torch.arange(n_ctx).expand(len(order), -1))
        sources, owners = number[used], order[:, None].expand_as(used)[used]
        context = (sources >= 0).nonzero().flatten()
        cu_seqlens = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()
        keep(
            self,
            order=order,
            ids=layout.ids[order][used],
            positions=places.expand_as(used)[used],
            cu_seqlens=cu_seqlens,
            classes=token_classes(cu_seqlens, len(sources)),
            ends=lengths.cumsum(0) - 1,
            context=context,
            others=(sources < 0).nonzero().flatten(),
            sources=sources[context],
            owners=owners[context],
        )
        self.holds_context = bool(len(context))

    def forward(
        self, context: Tensor, deep: Tensor | None, refiners: Refiners | None, *prefix: Tensor
    ) -> Tensor:
        """Compute the end tokens' states after the last layer, ``[K, C, width]``, as in ``order``.

        Args:
            context: ``[K, M, width]``, or ``[K, all C, M, width]`` if class-specific.
            deep: context tokens that replace ``context`` before layers 1, 2, ...:
                ``[K, depth - 1, M, width]``.
            refiners: one for each block but the first; applied to all but context tokens.
            prefix: keys and values of each layer, alternating, from `SharedPrefix`.
        """
        x = self._embed(context)
        depth = 1 if deep is None else deep.shape[1] + 1
        for i, block in enumerate(self.text.blocks):
            if refiners is not None and i > 0:
                x = self._refine(x, refiners[i - 1])
            if deep is not None and 0 < i < depth and self.holds_context:
                x = x.index_copy(1, self.context, deep[:, i - 1, self.sources].to(x.dtype))
            normed, shared = block.norm(x), (prefix[2 * i], prefix[2 * i + 1])
            if i + 1 < len(self.text.blocks):
                q, k, v = block.qkv(normed)
                x = block.leave(x, self._attend(q, k, v, *shared))
                continue
            k, v = block.keys_values(normed)
            q = block.queries(normed[:, self.ends])
            mixed = self._attend(q, k, v, *shared, last_only=True)
            x = block.leave(x[:, self.ends], mixed)
        return x

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, *prefix: Tensor, last_only: bool = False
    ) -> Tensor:
        starts, classes = self.cu_seqlens, self.classes
        keys, values = prefix
        return prefix_attention(q, k, v, keys, values, starts, classes=classes, last_only=last_only)

    def _refine(self, x: Tensor, refiner: Callable[[Tensor], Tensor]) -> Tensor:
        if not self.holds_context:
            return refiner(x).to(x.dtype)
        return x.index_copy(1, self.others, refiner(x[:, self.others]).to(x.dtype))

    def _embed(self, context: Tensor) -> Tensor:
        """Embed the tokens, ``[K, N, width]``, or ``[1, N, width]`` if none is a context token."""
        parts = self.text.parts
        tokens = parts.token_embedding(self.ids).to(parts.dtype)[None]
        positions = parts.positional_embedding.to(parts.dtype)[self.positions]
        if self.holds_context:
            own = (self.owners, self.sources) if context.ndim == 4 else (self.sources,)
            tokens = tokens.expand(len(context), -1, -1)
            tokens = tokens.index_copy(1, self.context, context[:, *own].to(tokens.dtype))
        return tokens + positions


class SharedPrefix(nn.Module):
    """Tokens before the class name: start token, context, fixed words; or a part of them.

    Args:
        text: `OpenText`, the text encoder's parts and blocks.
        layout: layout of all prompts.
        length: number of tokens before the class name, P; see `TextLayout.shared`.
        first: number of first tokens that are computed separately; none of them is a context token.

    Attributes:
        ids: token ids, ``[1, P - first]``, with a placeholder at context positions.
        context: indices of the context tokens in ``ids``, ``[n]``.
        others: the other indices, ``[P - first - n]``.
        order: place of each token behind those of ``others`` and ``context``, ``[P - first]``.
    """

    ids: Tensor
    context: Tensor
    others: Tensor
    order: Tensor

    def __init__(self, text: OpenText, layout: TextLayout, length: int, first: int = 0) -> None:
        super().__init__()
        self.text, self.first, self.length = text, first, length
        places = layout.context[0]
        context = places[places < length] - first
        others = other_places(context[None], length - first)[0]
        self.inside, self.outside = len(context), len(others)
        # without fixed words after the context, the others are the first tokens
        self.leads = bool((others == torch.arange(self.outside)).all())
        # tokens that the others attend to
        self.seen = first + int(others[-1]) + 1 if self.outside else 0
        order = torch.cat([others, context]).argsort()
        keep(self, ids=layout.ids[:1, first:length], context=context, others=others, order=order)

    def forward(
        self,
        context: Tensor | None,
        deep: Tensor | None,
        refiners: Refiners | None,
        *known: Tensor,
    ) -> list[Tensor]:
        """Compute keys and values of each layer, alternating, ``[K or 1, P, H, d]`` each.

        Args:
            context: ``[K, M, width]``; not used if class-specific, or without context tokens.
            deep: context tokens that replace ``context`` before layers 1, 2, ...:
                ``[K, depth - 1, M, width]``.
            refiners: one for each block but the first; applied to all but context tokens.
            known: keys and values of the first tokens, likewise, ``[1, first, H, d]`` each.
        """
        if known and self.first == self.length:
            return list(known)
        x = self._embed(context)
        own = () if deep is None else deep[:, :, : self.inside].to(x.dtype).unbind(1)
        depth = len(own) + 1 if self.inside else 1
        mask = causal_mask(self.length, x)[self.first :]
        out: list[Tensor] = []
        for i, block in enumerate(self.text.blocks):
            if refiners is not None and i > 0 and self.outside:
                x = self._refine(x, refiners[i - 1])
            if 0 < i < depth:
                x = self._with_context(x, own[i - 1])
            normed, before = block.norm(x), known[2 * i : 2 * i + 2]
            # context tokens that the next layer replaces need keys and values, but no output
            replaced = i + 1 < depth
            if i + 1 == len(self.text.blocks) or (replaced and not self.outside):
                out += _behind(before, *block.keys_values(normed))
                continue
            q, *new = block.qkv(normed)
            k, v = _behind(before, *new)
            out += (k, v)
            rows = mask
            if replaced:
                x, q, rows = self._others(x), self._others(q), self._others(mask[None])[0]
                rows = rows[:, : self.seen]
                k, v = k[:, : self.seen], v[:, : self.seen]
            x = block.leave(x, attend(q, k, v, rows))
        return out

    def _embed(self, context: Tensor | None) -> Tensor:
        """Embed the tokens, ``[K, tokens, width]``, or ``[1, tokens, width]`` without context."""
        parts = self.text.parts
        x = parts.token_embedding(self.ids).to(parts.dtype)
        if self.inside:
            assert context is not None
            own = context[:, : self.inside].to(parts.dtype)
            x = x.expand(len(own), -1, -1).index_copy(1, self.context, own)
        return x + parts.positional_embedding[self.first : self.length].to(parts.dtype)

    def _others(self, x: Tensor) -> Tensor:
        """Return all but the context tokens of ``x [K, tokens, ...]``."""
        return x[:, : self.outside] if self.leads else x[:, self.others]

    def _refine(self, x: Tensor, refiner: Callable[[Tensor], Tensor]) -> Tensor:
        """Refine all but the context tokens; ``x`` may lack these."""
        if x.shape[1] == self.outside:
            return refiner(x).to(x.dtype)
        return x.index_copy(1, self.others, refiner(self._others(x)).to(x.dtype))

    def _with_context(self, others: Tensor, context: Tensor) -> Tensor:
        """Return all tokens in their order, ``[K, tokens, width]``."""
        if not self.outside:
            return context
        x = torch.cat([others.expand(len(context), -1, -1), context], dim=1)
        return x if self.leads else x[:, self.order]


def _behind(before: Sequence[Tensor], *new: Tensor) -> list[Tensor]:
    """Append keys and values to those of the first tokens, if any."""
    if not before:
        return list(new)
    pairs = zip(before, new, strict=True)
    return [torch.cat([a.expand(len(b), -1, -1, -1), b], dim=1) for a, b in pairs]
