"""`TextTower`: class features from prompts without redundant computation."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.checks import check_count
from .._utils.memory import total_memory
from ..clip.frozen import FrozenCLIP
from ..clip.parts import HFTextParts, TextParts
from .base import keep
from .blocks import OpenText
from .cast import cast_hf, cast_text
from .image_base import Refiners
from .text_base import PromptedText
from .text_chunks import deal, default_class_chunk, recomputed
from .text_hf import HFChunk, OpenHF
from .text_packed import PackedChunk, SharedPrefix
from .text_whole import FullChunk, cut, few_whole, pooled_places


class TextPath(enum.Enum):
    """Exact ways to compute class features from prompts; the values describe them."""

    #: causal encoder: the tokens before the class name are computed once for all classes, the
    #: other tokens are packed without padding
    SHARED_PREFIX = "shared prefix"
    #: encoder without a causal mask, or few short prompts: all tokens of each prompt are computed
    WHOLE_SEQUENCES = "whole sequences"
    #: Hugging Face model: prompts are put into its input embeddings, cut to the longest
    INPUT_EMBEDDINGS = "input embeddings"


def _autocast_kind(device: torch.device) -> str:
    """Return the device type for autocast, which the meta device does not have."""
    return device.type if torch.amp.is_autocast_available(device.type) else "cpu"


class TextTower(PromptedText):
    """Fast text tower with trainable context tokens; see `PromptedText` for the other arguments.

    It uses the best `TextPath` that the model supports.

    Args:
        class_chunk: number of classes encoded at once. If there are several chunks, the backward
            pass recomputes each of them, which bounds the memory. The default depends on the shapes
            and on the device's memory.
        dtype: dtype of the blocks; by default that of the weights.
        whole: whether to compute complete prompts although the encoder is causal; None decides by
            their size, see `few_whole`.
    """

    inverse: Tensor

    def __init__(
        self,
        clip: FrozenCLIP,
        classnames: Sequence[str],
        n_ctx: int,
        *,
        class_chunk: int | None = None,
        dtype: torch.dtype | None = None,
        whole: bool | None = False,
        **options: Any,
    ) -> None:
        super().__init__(clip, classnames, n_ctx, **options)
        self._whole = whole
        if class_chunk is not None:
            check_count(class_chunk, "class_chunk")
        self.prefix, self.full_length = 0, self.layout.length
        self._cast = dtype
        # the prefix; its tokens before the first context token, whose keys and values are `start`;
        # the tokens after these
        self.shared: SharedPrefix | None = None
        self.lead: SharedPrefix | None = None
        self.rest: SharedPrefix | None = None
        self.start: list[Tensor] = []
        self.chunks = nn.ModuleList()
        self.open = OpenHF() if isinstance(self.parts, HFTextParts) else OpenText()
        self.refresh()
        self.class_chunk = min(self._build(class_chunk), self.classes)
        order = torch.cat([chunk.order for chunk in self.chunks])  # type: ignore[misc]
        keep(self, inverse=order.argsort())
        self.to(clip.device)
        self._find_start()

    @property
    def path(self) -> TextPath:
        """The `TextPath` that this tower uses."""
        if isinstance(self.open, OpenHF):
            return TextPath.INPUT_EMBEDDINGS
        return TextPath.WHOLE_SEQUENCES if self.shared is None else TextPath.SHARED_PREFIX

    def derive(self) -> None:
        """Update the parts to the current weights, in the requested precision."""
        parts = self.clip.text_parts
        if isinstance(self.open, OpenText):
            assert isinstance(parts, TextParts)
            self.parts = cast_text(parts, self._cast)
            self.open.set(self.parts)
            self._find_start()
        else:
            assert isinstance(parts, HFTextParts)
            self.parts = self.open.parts = cast_hf(parts, self._cast)

    def _find_start(self) -> None:
        """Compute the keys and values of the tokens before the context, without refiners."""
        if self.lead is None:
            return
        self.to(self.clip.device)
        # a later step may record gradients, or be outside autocast
        kind = _autocast_kind(self.clip.device)
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(kind, enabled=False):
            self.start = self.lead(None, None, None)

    def _build(self, class_chunk: int | None) -> int:
        """Make the chunks; return the number of classes of each."""
        make: Callable[..., nn.Module] = HFChunk
        if isinstance(self.open, OpenHF):
            self.layout = self.layout.trimmed()
        elif (parts := self.open.parts).attn_mask is None or self._takes_whole():
            make, self.layout = FullChunk, cut(self.layout, parts)
        else:
            self.layout = dataclasses.replace(self.layout, ends=pooled_places(self.layout, parts))
            self.prefix = self.layout.shared(self.class_specific)
            first = self.layout.before_context(self.prefix)
            self.lead = SharedPrefix(self.open, self.layout, first)
            self.rest = SharedPrefix(self.open, self.layout, self.prefix, first)
            self.shared = SharedPrefix(self.open, self.layout, self.prefix)
            make = partial(PackedChunk, prefix=self.prefix)
        lengths = torch.full((self.classes,), self.layout.length)
        if self.shared is not None:
            lengths = self.layout.ends + 1 - self.prefix
        chunk = class_chunk or self._default_chunk(math.ceil(float(lengths.float().mean())))
        for rows in deal(lengths, chunk):
            self.chunks.append(make(self.open, self.layout, rows))
        return chunk

    def _takes_whole(self) -> bool:
        """Return whether to compute complete prompts of a causal encoder."""
        if self._whole is not None:
            return self._whole
        ends = pooled_places(self.layout, self.open.parts)  # type: ignore[arg-type]
        shared = self.layout.shared(self.class_specific)
        on_cpu = self.clip.device.type == "cpu"
        return on_cpu and few_whole(ends + 1, shared, self.parts.width, self.n_prompts or 1)

    def _default_chunk(self, tokens: int) -> int:
        parts, memory = self.parts, total_memory(self.clip.device)
        tokens *= self.n_prompts or 1
        return default_class_chunk(
            self.classes, tokens, parts.width, parts.depth, parts.dtype, memory
        )

    def describe(self) -> str:
        """Describe the path that is used, and why a better one is impossible."""
        whole = self.classes * self.full_length
        if self.path is not TextPath.SHARED_PREFIX:
            why = "the text encoder is not open_clip's, so no prefix can be shared"
            if isinstance(self.open, OpenText):
                why = "few and short prompts, for which this is faster than a shared prefix"
                if self.open.parts.attn_mask is None:
                    why = "the text encoder is not causal, so no prefix can be shared"
            tokens = self.classes * self.length
            taken = f"{self.path.value} of {self.length} tokens"
            return f"{taken}: {why}; {tokens} tokens, not {whole}"
        packed = sum(len(chunk.ids) for chunk in self.chunks)  # type: ignore[arg-type, misc]
        why = ""
        if self.class_specific:
            why = " (each class has a separate context)"
        elif bool((self.layout.context >= self.prefix).any()):
            why = " (class names precede context tokens)"
        return (
            f"{self.path.value} of {self.prefix} tokens{why}, the rest packed; "
            f"{self.prefix + packed} tokens, not {whole}"
        )

    @property
    def length(self) -> int:
        """Number of computed tokens of the longest prompt."""
        packed = self.path is TextPath.SHARED_PREFIX
        return int(self.layout.ends.max()) + 1 if packed else self.layout.length

    def encode(
        self, context: Tensor, deep: Tensor | None, refiners: tuple[nn.Module, ...] | None
    ) -> Tensor:
        parts = self.parts
        shared = self._prefix(context, deep, refiners)
        states = torch.cat(list(self._run(context, deep, refiners, shared)), dim=1)
        states = states[:, self.inverse]
        # without context tokens, all K prompts are equal
        states = states.expand(len(context), -1, -1)
        if isinstance(parts, HFTextParts):
            return states  # already pooled and projected
        return parts.project(parts.ln_final(states))

    def _prefix(
        self, context: Tensor, deep: Tensor | None, refiners: tuple[nn.Module, ...] | None
    ) -> list[Tensor]:
        """Compute the keys and values of the prefix, if there is one."""
        if self.shared is None or self.rest is None:
            return []
        # autocast gives the other tokens' keys another dtype than that of `start`
        known = refiners is None and not torch.is_autocast_enabled(_autocast_kind(context.device))
        # replaced context tokens need no attention; without deep prompts, joining the first tokens
        # and the others would take longer than to compute the first again
        if known and (deep is not None or not self.rest.inside):
            return self.rest(context, deep, None, *self.start)
        return self.shared(context, deep, refiners)

    def _run(
        self,
        context: Tensor,
        deep: Tensor | None,
        refiners: tuple[nn.Module, ...] | None,
        shared: Sequence[Tensor],
    ) -> Iterator[Tensor]:
        for chunk in self.chunks:
            run = partial(self._one, chunk)
            if len(self.chunks) == 1:
                yield run(refiners, context, deep, *shared)
            elif refiners:
                yield recomputed(run, context, deep, *shared, modules=refiners)
            else:
                yield recomputed(partial(run, None), context, deep, *shared)

    @staticmethod
    def _one(
        chunk: nn.Module,
        refiners: Refiners | None,
        context: Tensor,
        deep: Tensor | None,
        *shared: Tensor,
    ) -> Tensor:
        return chunk(context, deep, refiners, *shared)
