"""What the text towers of both engines share: the prompts' layout, and the shapes they take."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from .._utils.checks import check_classnames, check_count
from ..clip.frozen import FrozenCLIP
from .base import Tower
from .image import check_refiners
from .text_layout import Position, text_layout

TextRefiners = Sequence[nn.Module] | nn.ModuleList


class PromptedText(Tower, ABC):
    """Class features from learned context tokens and class names.

    Args:
        clip: the frozen model.
        classnames: C distinct names; underscores count as spaces. A period follows each, as in
            CoOp.
        n_ctx: M, the number of context tokens; 0 gives the features of plain text.
        position: where the class name stands: behind the context (``"end"``), between its halves
            (``"middle"``) or before it (``"front"``).
        class_specific: each class has a context of its own.
        n_prompts: K prompts encoded together, each with its own features; None is one prompt.

    Raises:
        ValueError: the text tower takes no prompts (the reason is given), or a class name is too
            long for the context length.
    """

    def __init__(
        self,
        clip: FrozenCLIP,
        classnames: Sequence[str],
        n_ctx: int,
        *,
        position: Position = "end",
        class_specific: bool = False,
        n_prompts: int | None = None,
    ) -> None:
        super().__init__(clip)
        self.parts = parts = clip.text_parts
        if n_prompts is not None:
            check_count(n_prompts, "n_prompts")
        self.classes = len(check_classnames(classnames))
        self.n_ctx, self.n_prompts = check_count(n_ctx, "n_ctx", least=0), n_prompts
        self.class_specific = class_specific
        self.layout = text_layout(
            clip,
            classnames,
            n_ctx,
            position=position,
            pool_type=parts.pool_type,
            eos_id=parts.eos_id,
        )

    @property
    def context_shape(self) -> tuple[int, ...]:
        """The shape that a context must have: ``[K?, C?, M, width]``."""
        many = () if self.n_prompts is None else (self.n_prompts,)
        own = (self.classes,) if self.class_specific else ()
        return (*many, *own, self.n_ctx, self.parts.width)

    def forward(
        self,
        context: Tensor,
        deep: Tensor | None = None,
        refiners: TextRefiners | None = None,
    ) -> Tensor:
        """Un-normalized class features ``[C, D]``, or ``[K, C, D]`` of K prompts.

        Args:
            context: ``[M, text_width]``, with K in front for several prompts, then C where it is
                class-specific.
            deep: what replaces the context tokens before layers 1, 2, ... (MaPLe's deep prompts,
                Khattak et al., CVPR 2023): ``[depth - 1, M, text_width]``, K in front likewise.
            refiners: one for each block but the first: tokens ``[..., T, text_width]`` to the same,
                each token by itself. They act on the start token, the class names and the end
                tokens (on padding too, where it is attended to), never on context tokens.

        Raises:
            ValueError: shapes that don't fit, a depth or a number of refiners that the tower does
                not have.
            TypeError: a refiner that is not a module.
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
        """Raise what `forward` would."""
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
                f"refiners must be None for the text tower of {self.clip.name}: they can't be put "
                "into its layers, which are another library's"
            )
        for refiner in refiners:
            # a function would hide what it learns from the chunks' backward pass
            if not isinstance(refiner, nn.Module):
                raise TypeError(
                    f"refiners must be modules such as TokenRefiner, got {type(refiner).__name__}"
                )
        check_refiners(tuple(refiners), self.parts.layers)

    def describe(self) -> str:
        """The way that is taken, in words."""
        tokens = self.classes * self.layout.length
        return f"every class at its full length of {self.layout.length} tokens, {tokens} in all"

    @abstractmethod
    def encode(
        self, context: Tensor, deep: Tensor | None, refiners: tuple[nn.Module, ...] | None
    ) -> Tensor:
        """``[K, C, D]`` of a context ``[K, C?, M, W]`` and ``deep`` ``[K, depth - 1, M, W]``."""


def check_depth(depth: int, layers: int, tower: str) -> None:
    """Raise where prompts are deeper than the tower."""
    if depth > max(layers, 1):
        why = f"it has {layers} layers" if layers else "prompts can't be put into its layers"
        raise ValueError(f"depth must be at most {max(layers, 1)} for the {tower}: {why}")
