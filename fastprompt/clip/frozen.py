"""`FrozenCLIP`: any open_clip model, its tokenizer and its pixel normalization, behind one face."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._utils.attention import plain_attention
from .._utils.checks import check_images
from .._utils.hashing import digest
from .description import Description
from .parts import HFTextParts, TextParts, architecture, text_parts, why_no_text_prompts

if TYPE_CHECKING:  # what `zero_shot` returns
    from ..model.classifier import CLIPClassifier

Tokenizer = Callable[[list[str]], Tensor]
TEMPLATES = ("a photo of a {}.",)
_TEXT_BATCH = 256


class FrozenCLIP(nn.Module):
    """A CLIP whose weights never change: no gradients into them, always in eval mode.

    Made by `load_clip`. Pixels are float32 NCHW in [0, 1]; normalization happens inside.

    Args:
        model: an open_clip ``CLIP`` or ``CustomTextCLIP``; kept, frozen: hand in a copy.
        tokenizer: strings to token ids, ``[N, context_length]``.
        mean, std: the pixel normalization, three values each.
        name: what to call the model.
        source: the arguments of `load_clip` that make this model again; None for an object.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        name: str = "custom",
        source: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.version = 0  # counts changes of the weights
        self.model = model
        model.requires_grad_(False)
        self.tokenizer = tokenizer
        dtype = next(model.parameters()).dtype
        for key, values in (("mean", mean), ("std", std)):
            if len(values) != 3:
                raise ValueError(f"{key} must hold three values, one a channel, got {list(values)}")
            tensor = torch.tensor(list(values), dtype=dtype).view(3, 1, 1)
            self.register_buffer(key, tensor, persistent=False)
        if not bool((self.std > 0).all()):
            raise ValueError(f"std must be positive, got {list(std)}")
        self.name = name
        self.source = dict(source) if source is not None else None
        self.train(False)

    def train(self, mode: bool = True) -> FrozenCLIP:
        """Stays in eval mode, whatever ``mode`` says: the weights are frozen."""
        return super().train(False)

    def _apply(self, *args: Any, **kwargs: Any) -> FrozenCLIP:
        # every move and cast comes through here
        self._weights_changed()
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        # every load comes through here, also that of a module which this one is a part of
        self._weights_changed()
        super()._load_from_state_dict(*args, **kwargs)

    def _weights_changed(self) -> None:
        """What was made of the weights is made anew: the fingerprint here, the rest by towers."""
        self.__dict__.pop("fingerprint", None)
        self.version += 1

    def requires_grad_(self, requires_grad: bool = True) -> FrozenCLIP:
        """Refuses to unfreeze.

        Raises:
            RuntimeError: ``requires_grad`` is true.
        """
        if requires_grad:
            raise RuntimeError("FrozenCLIP stays frozen: tune prompts, or a copy of the model")
        return super().requires_grad_(False)

    @property
    def image_size(self) -> int:
        """Height and width of the pixels that the image tower takes."""
        visual: Any = self.model.visual
        size = visual.image_size
        return int(size[0]) if isinstance(size, (tuple, list)) else int(size)

    @property
    def context_length(self) -> int:
        """Tokens of a text, start and end included."""
        return int(self.model.context_length)  # type: ignore[arg-type]  # an int on both layouts

    @cached_property
    def embed_dim(self) -> int:
        """D, the width of image and text features."""
        return self.encode_text(["a"]).shape[1]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.mean.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return next(self.model.parameters()).dtype

    @property
    def logit_scale(self) -> Tensor:
        """exp of the model's logit scale, a scalar tensor."""
        scale: Any = self.model.logit_scale
        return scale.exp().reshape(())

    @property
    def logit_bias(self) -> Tensor | None:
        """The bias that sigmoid models add to their logits, a scalar tensor."""
        bias: Any = getattr(self.model, "logit_bias", None)
        return None if bias is None else bias.reshape(())

    @property
    def text_parts(self) -> TextParts | HFTextParts:
        """The text tower's parts for prompts.

        Raises:
            ValueError: prompts can't be put into it; the message says why.
        """
        if reason := self.why_no_text_prompts():
            raise ValueError(f"clip: {self.name} takes no text prompts: {reason}")
        return text_parts(self.model)

    def why_no_text_prompts(self) -> str:
        """Why prompts can't be put into the text tower; empty if they can."""
        return why_no_text_prompts(self.model)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over architecture, weights and normalization: what a run was made with."""
        state = {k: v for k, v in self.model.state_dict().items() if isinstance(v, Tensor)}
        state |= {"pixel.mean": self.mean, "pixel.std": self.std}
        return digest(state, *architecture(self.model))

    def encode_image(self, images: Tensor) -> Tensor:
        """Image features, un-normalized: pixels ``[B, 3, H, W]`` in [0, 1] to ``[B, D]``.

        Raises:
            ValueError, TypeError: pixels of another shape or dtype.
        """
        self.check_pixels(images)
        with plain_attention():
            encode: Any = self.model.encode_image
            return encode(((images - self.mean) / self.std).to(self.dtype))

    def check_pixels(self, images: Tensor) -> None:
        """Raise unless ``images`` has the shape and dtype that the image tower takes."""
        check_images(images, values=False)
        size = self.image_size
        if images.shape[-2:] != (size, size):
            raise ValueError(
                f"images must be [B, 3, {size}, {size}] for {self.name}, got {list(images.shape)}: "
                f"load the data with image_size={size}"
            )

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Text features, un-normalized: N strings to ``[N, D]``. Not differentiable."""
        return self._encode_tokens(self.tokenizer(list(texts)))

    @torch.no_grad()
    def _encode_tokens(self, tokens: Tensor) -> Tensor:
        encode: Any = self.model.encode_text
        with plain_attention():
            parts = tokens.to(self.device).split(_TEXT_BATCH)
            return torch.cat([encode(part) for part in parts])

    def zero_shot(
        self,
        classnames: Sequence[str],
        templates: Sequence[str] = TEMPLATES,
        *,
        engine: str = "fast",
        precision: str | None = None,
    ) -> CLIPClassifier:
        """CLIP's zero-shot classifier: pixels in [0, 1] to logits.

        Each class's text feature is the mean of its normalized features over the templates,
        normalized (Radford et al., ICML 2021, section 3.1.4).

        Args:
            classnames: C distinct names.
            templates: strings with one ``{}``, where the name goes.
            engine, precision: of the image tower, see `CLIPClassifier`.

        Raises:
            ValueError: no or duplicate class names, a template without one ``{}``.
        """
        from ..model.classifier import zero_shot  # a classifier is made of this class

        return zero_shot(self, classnames, templates, engine=engine, precision=precision)

    def encode_names(self, names: Sequence[str], template: str) -> Tensor:
        """Text features, un-normalized, of N names in a template with one ``{}``: ``[N, D]``.

        Raises:
            ValueError: a text that is longer than the context, which the tokenizer would cut.
        """
        texts = [template.replace("{}", name) for name in names]
        tokens = self.tokenizer(texts)
        for name, text, row in zip(names, texts, tokens, strict=True):
            # a text that is cut has the same tokens whatever stands behind its end
            full = bool(row[-1] != 0)
            if full and torch.equal(row, self.tokenizer([f"{text} more"])[0]):
                raise ValueError(
                    f"classnames: {name[:40]!r} in the template {template!r} is longer than the "
                    f"{self.context_length} tokens that {self.name} takes: shorten it"
                )
        return self._encode_tokens(tokens)

    def describe(self) -> Description:
        """Widths, depths, and which methods and fast paths fit this model, or why not."""
        from ..methods.describe import describe  # the methods are made for this class

        return describe(self)
