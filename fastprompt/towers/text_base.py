"""Base class of the text towers of both engines: layout of the prompts, checks of shapes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from .._utils.checks import check_classnames, check_count
from ..clip.frozen import FrozenCLIP
from .base import Tower
from .template import DEFAULT
from .text_layout import TextLayout, text_layout

TextRefiners = Sequence[nn.Module] | nn.ModuleList


class PromptedText(Tower, ABC):
    """Text tower: computes class features from trainable context tokens and class names.

    Args:
        clip: the frozen model.
        classnames: C distinct class names; underscores become spaces.
        n_ctx: number of context tokens, M; 0 gives the features of plain text.
        template: positions of the context ``[ctx]``, fixed words and the class name ``{}``: by
            default CoOp's ``"[ctx] {}."``. See `parse_template`.
        class_specific: if True, each class has a separate context.
        n_prompts: number of prompts encoded together, K; None for a single prompt.
        layout: positions of the tokens of C prompts; by default those of ``classnames`` in
            ``template``, which are not used with it.

    Raises:
        ValueError: the text encoder does not support prompts (the message says why), the template
            is not valid, or a class name is too long for the context length.
    """

    def __init__(
        self,
        clip: FrozenCLIP,
        classnames: Sequence[str],
        n_ctx: int,
        *,
        template: str = DEFAULT,
        class_specific: bool = False,
        n_prompts: int | None = None,
        layout: TextLayout | None = None,
    ) -> None:
        super().__init__(clip)
        self.parts = clip.text_parts
        if n_prompts is not None:
            check_count(n_prompts, "n_prompts")
        self.n_ctx, self.n_prompts = check_count(n_ctx, "n_ctx", least=0), n_prompts
        self.class_specific = class_specific
        if layout is None:
            layout = text_layout(clip, check_classnames(classnames), n_ctx, template=template)
        self.layout, self.classes = layout, len(layout.ids)

    @property
    def context_shape(self) -> tuple[int, ...]:
        """Required shape of ``context``: ``[K?, C?, M, width]``."""
        many = () if self.n_prompts is None else (self.n_prompts,)
        own = (self.classes,) if self.class_specific else ()
        return (*many, *own, self.n_ctx, self.parts.width)

    def forward(
        self,
        context: Tensor,
        deep: Tensor | None = None,
        refiners: TextRefiners | None = None,
    ) -> Tensor:
        """Compute unnormalized class features ``[C, D]``, or ``[K, C, D]`` for K prompts.

        Args:
            context: ``[M, text_width]``, preceded by K if ``n_prompts`` is given, then by C if
                class-specific.
            deep: replacements of the context tokens before layers 1, 2, ... (MaPLe's deep prompts,
                Khattak et al., CVPR 2023): ``[depth - 1, M, text_width]``, preceded by K if
                ``n_prompts`` is given.
            refiners: one for each block but the first; each maps ``[..., T, text_width]`` to that
                shape, token by token. They act on the start token, the class names and the end
                tokens (also on padding, if it is attended to), never on context tokens.

        Raises:
            ValueError: a shape is wrong, or the depth or the number of refiners does not fit the
                encoder's layers.
            TypeError: a refiner is not a module.
        """
        self.refresh()
        self.check(context, deep, refiners)
        if self.n_prompts is None:
            context, deep = context[None], None if deep is None else deep[None]
        deep = None if deep is None or not deep.shape[1] else deep
        features = self.encode(context, deep, None if refiners is None else tuple(refiners))
        return features[0] if self.n_prompts is None else features

    def check(
        self, context: Tensor, deep: Tensor | None, refiners: TextRefiners | None = None
    ) -> None:
        """Raise the errors of `forward`."""
        self._check_refiners(refiners)
        if tuple(context.shape) != self.context_shape:
            raise ValueError(
                f"context must be {list(self.context_shape)}, got {list(context.shape)}"
            )
        if deep is None:
            return
        many = () if self.n_prompts is None else (self.n_prompts,)
        shape, layers = tuple(deep.shape), self.parts.layers
        if len(shape) != len(many) + 3 or (*shape[: len(many)], *shape[-2:]) != (
            *many,
            self.n_ctx,
            self.parts.width,
        ):
            wanted = [*many, "depth - 1", self.n_ctx, self.parts.width]
            raise ValueError(f"deep must be {wanted}, got {list(shape)}".replace("'", ""))
        check_depth(shape[-3] + 1, layers, f"text tower of {self.clip.name}")

    def _check_refiners(self, refiners: TextRefiners | None) -> None:
        if refiners is None:
            return
        if not self.parts.layers:
            raise ValueError(
                f"refiners must be None for the text tower of {self.clip.name}: its layers, from "
                "another library, accept no refiners"
            )
        for refiner in refiners:
            # the backward pass of chunks can't find trainable parameters inside a plain function
            if not isinstance(refiner, nn.Module):
                raise TypeError(
                    f"refiners must be modules such as TokenRefiner, got {type(refiner).__name__}"
                )
        wanted, got = self.parts.layers - 1, len(tuple(refiners))
        if got != wanted:
            raise ValueError(
                f"refiners must have length {wanted}, one for each text block but the first, "
                f"got {got}"
            )

    def describe(self) -> str:
        """Describe the computation."""
        tokens = self.classes * self.layout.length
        return f"every class at its full length of {self.layout.length} tokens, {tokens} in total"

    @abstractmethod
    def encode(
        self, context: Tensor, deep: Tensor | None, refiners: tuple[nn.Module, ...] | None
    ) -> Tensor:
        """Encode a context ``[K, C?, M, W]``, deep ``[K, depth - 1, M, W]`` to ``[K, C, D]``."""


def check_depth(depth: int, layers: int, tower: str) -> None:
    """Raise if the prompts need more layers than the tower has."""
    if depth > max(layers, 1):
        why = f"it has {layers} layers" if layers else "its layers accept no prompts"
        raise ValueError(f"depth must be at most {max(layers, 1)} for the {tower}: {why}")
