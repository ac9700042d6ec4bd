"""`FrozenCLIP`: a frozen open_clip model with its tokenizer and pixel normalization."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._utils.attention import plain_attention
from .._utils.checks import check_images, check_numbers, check_text, shown
from .._utils.hashing import digest
from .description import Description
from .parts import (
    HFTextParts,
    TextParts,
    architecture,
    input_channels,
    pooled,
    side,
    text_parts,
    why_no_text_prompts,
    why_no_visual_prompts,
)

if TYPE_CHECKING:  # return types
    from ..model.classifier import CLIPClassifier
    from ..towers.compare import Gap

Tokenizer = Callable[[list[str]], Tensor]
TEMPLATES = ("a photo of a {}.",)
_TEXT_BATCH = 256


def _first_parameter(module: nn.Module) -> nn.Parameter | None:
    """Return ``next(module.parameters())`` without a walk through all modules."""
    own = [p for p in module._parameters.values() if p is not None]
    below = (_first_parameter(each) for each in module._modules.values() if each is not None)
    return own[0] if own else next((p for p in below if p is not None), None)


def _writes(module: nn.Module | None) -> int:
    """Return how often the module's first parameter was written, 0 if that is not counted."""
    first = None if module is None else _first_parameter(module)
    return 0 if first is None or first.is_inference() else first._version


class FrozenCLIP(nn.Module):
    """A CLIP with frozen parameters, always in eval mode.

    Create it with `load_clip`. Pixels are float32 NCHW in [0, 1]; the model normalizes them.

    Args:
        model: an open_clip ``CLIP`` or ``CustomTextCLIP``. It is frozen in place; pass a copy to
            keep the original trainable.
        tokenizer: maps N strings to token ids ``[N, context_length]``.
        mean, std: the pixel normalization, one value per channel.
        name: the model's name in messages and results.
        source: the arguments of `load_clip` that reload this model; None if it was created from a
            model object.

    Raises:
        ValueError: ``mean`` or ``std`` does not have one value per input channel, or ``std`` is not
            positive.
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
        self._changes = 0
        self._written: tuple[int, ...] = ()  # of `version`
        self._digest: tuple[int, str] | None = None  # `fingerprint` at a version
        # the towers' differences from the model's own forward pass, of `fastprompt.towers.compare`;
        # not stored by fingerprint, which hooks and overridden methods do not change
        self.gaps: dict[str, dict[str, Gap]] = {}
        self.model = model
        model.requires_grad_(False)
        self.tokenizer = tokenizer
        dtype = next(model.parameters()).dtype
        channels = input_channels(model) or len(mean)
        for key, given in (("mean", mean), ("std", std)):
            values = check_numbers(given, key) or []
            if len(values) != channels:
                raise ValueError(
                    f"{key} must have {channels} values, one per channel of the image encoder's "
                    f"input, got {values}"
                )
            tensor = torch.tensor(values, dtype=dtype).view(channels, 1, 1)
            self.register_buffer(key, tensor, persistent=False)
        if not bool(((self.std > 0) & self.std.isfinite() & self.mean.isfinite()).all()):
            raise ValueError(f"std must be positive and mean finite, got {list(std)}, {list(mean)}")
        self.name = name
        self.source = dict(source) if source is not None else None
        self.train(False)

    def train(self, mode: bool = True) -> FrozenCLIP:
        """Keep the model in eval mode; ``mode`` is ignored because the weights are frozen."""
        return super().train(False)

    def _apply(self, *args: Any, **kwargs: Any) -> FrozenCLIP:
        # called by every device or dtype conversion, of which many change nothing
        before = self._places()
        try:
            super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]  # untyped in torch
        finally:
            if self._places() != before:
                self._weights_changed()
        return self

    def _places(self) -> list[tuple[int, torch.dtype, torch.device]]:
        tensors = (*self.parameters(), *self.buffers())
        return [(t.data_ptr(), t.dtype, t.device) for t in tensors]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        # called by every load_state_dict, including that of a parent module
        self._weights_changed()
        super()._load_from_state_dict(*args, **kwargs)

    def _weights_changed(self) -> None:
        """Drop what depends on the weights; towers compare ``version`` to invalidate caches."""
        self.gaps = {}
        self._changes += 1

    @property
    def version(self) -> int:
        """Number that grows when the weights moved, or their values may have changed.

        Weights that are loaded into ``model`` or its image encoder count, not a change of some.
        """
        written = tuple(_writes(part) for part in (self.model, getattr(self.model, "visual", None)))
        if written != self._written:
            if self._written:
                self._weights_changed()
            self._written = written
        return self._changes

    def requires_grad_(self, requires_grad: bool = True) -> FrozenCLIP:
        """Return the model unchanged; its parameters cannot be unfrozen.

        Raises:
            RuntimeError: ``requires_grad`` is True.
        """
        if requires_grad:
            raise RuntimeError("FrozenCLIP stays frozen; tune prompts, or a copy of the model")
        return super().requires_grad_(False)

    @property
    def image_size(self) -> int | tuple[int, int]:
        """Side in pixels of the image encoder's square input; else ``(height, width)``."""
        return side(self.pixel_shape[1:])

    @property
    def channels(self) -> int:
        """Number of channels of the image encoder's input."""
        return len(self.mean)

    @property
    def pixel_shape(self) -> tuple[int, int, int]:
        """Shape of an image: channels, height and width."""
        visual: Any = self.model.visual
        size = visual.image_size
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        return self.channels, int(height), int(width)

    @property
    def preprocess(self) -> dict[str, Any]:
        """How open_clip resizes images for this model, as `load_data` takes it."""
        own = getattr(self.model.visual, "preprocess_cfg", None) or {}
        return {
            key: own[key] for key in ("resize_mode", "interpolation", "fill_color") if key in own
        }

    @property
    def context_length(self) -> int:
        """Number of tokens per text, including the start and end tokens."""
        return int(self.model.context_length)  # type: ignore[arg-type]  # an int on both layouts

    @cached_property
    def embed_dim(self) -> int:
        """D, the dimension of the image and text features."""
        return self.encode_text(["a"]).shape[1]

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.mean.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.model.parameters()).dtype

    @property
    def logit_scale(self) -> Tensor:
        """The exponential of the model's logit scale, a scalar tensor."""
        scale: Any = self.model.logit_scale
        return scale.exp().reshape(())

    @property
    def logit_bias(self) -> Tensor | None:
        """The logit bias of sigmoid models, a scalar tensor; None for other models."""
        bias: Any = getattr(self.model, "logit_bias", None)
        return None if bias is None else bias.reshape(())

    @property
    def text_parts(self) -> TextParts | HFTextParts:
        """The text encoder's modules and settings that prompts need.

        Raises:
            ValueError: the text encoder's structure does not support prompts; the message gives the
                reason.
        """
        if reason := why_no_text_prompts(self.model):
            raise ValueError(f"clip: {self.name} does not support text prompts: {reason}")
        return text_parts(self.model)

    def why_no_text_prompts(self) -> str:
        """Return why the text encoder does not support prompts; empty if it does.

        It supports prompts if its structure does and an engine reproduces its features.
        """
        from ..towers.compare import why_inexact  # avoids a circular import

        return why_no_text_prompts(self.model) or why_inexact(self, "text")

    def why_no_visual_prompts(self) -> str:
        """Return why the image encoder does not support prompts; empty if it does.

        It supports prompts if its structure does and an engine reproduces its features.
        """
        from ..towers.compare import why_inexact  # avoids a circular import

        return why_no_visual_prompts(self.model) or why_inexact(self, "image")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of architecture, weights and normalization, stored in each run."""
        version = self.version
        if self._digest is None or self._digest[0] != version:
            state = {k: v for k, v in self.model.state_dict().items() if isinstance(v, Tensor)}
            state |= {"pixel.mean": self.mean, "pixel.std": self.std}
            self._digest = version, digest(state, *architecture(self.model))
        return self._digest[1]

    def encode_image(self, images: Tensor) -> Tensor:
        """Map pixels ``[B, C, H, W]`` in [0, 1] to the model's own image features ``[B, D]``.

        Raises:
            ValueError: ``images`` does not have the input shape of the model.
            TypeError: ``images`` is not a float32 or float64 tensor.
        """
        self.check_pixels(images)
        with plain_attention():
            encode: Any = self.model.encode_image
            return pooled(encode(((images - self.mean) / self.std).to(self.dtype)))

    def check_pixels(self, images: Tensor) -> None:
        """Raise an error unless ``images`` has the image encoder's input shape and dtype."""
        check_images(images, values=False, channels=self.channels)
        channels, height, width = self.pixel_shape
        if images.shape[-2:] != (height, width):
            raise ValueError(
                f"images must be [B, {channels}, {height}, {width}] for {self.name}, got "
                f"{list(images.shape)}; load the data with image_size={self.image_size}"
            )

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Map N strings to the model's own text features ``[N, D]``, without gradients."""
        if isinstance(texts, str):
            raise TypeError(f"texts must be a list of strings, got the string {shown(texts)}")
        checked = [check_text(text, "texts") for text in texts]
        return self.encode_tokens(self.tokenizer(checked))

    @torch.no_grad()
    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Map token ids ``[N, T]`` to the model's own text features ``[N, D]``."""
        encode: Any = self.model.encode_text
        with plain_attention():
            parts = tokens.to(self.device).split(_TEXT_BATCH)
            return torch.cat([pooled(encode(part)) for part in parts])

    def zero_shot(
        self,
        classnames: Sequence[str],
        templates: Sequence[str] = TEMPLATES,
        *,
        engine: str = "fast",
        precision: str | None = None,
    ) -> CLIPClassifier:
        """Return CLIP's zero-shot classifier, which maps pixels in [0, 1] to logits.

        The text feature of a class is the mean of its normalized features over the templates,
        normalized again (Radford et al., ICML 2021, section 3.1.4).

        Args:
            classnames: C distinct class names.
            templates: strings with one ``{}`` as the placeholder of the class name.
            engine: ``"fast"`` skips computation that does not affect the features;
                ``"reference"`` runs open_clip's own encoders.
            precision: precision of the image tower; see `CLIPClassifier`.

        Raises:
            ValueError: ``classnames`` is empty or has duplicates, or a template does not have
                exactly one ``{}``.
        """
        from ..model.classifier import zero_shot  # avoids a circular import

        return zero_shot(self, classnames, templates, engine=engine, precision=precision)

    def name_tokens(self, names: Sequence[str], template: str) -> Tensor:
        """Return the token ids ``[N, T]`` of N names in a template with one ``{}``.

        Raises:
            ValueError: a text exceeds the context length; the tokenizer would truncate it.
        """
        texts = [template.replace("{}", name) for name in names]
        tokens = self.tokenizer(texts)
        for name, text, row in zip(names, texts, tokens, strict=True):
            # appending a word changes the tokens unless the text is truncated
            full = bool(row[-1] != 0)
            if full and torch.equal(row, self.tokenizer([f"{text} more"])[0]):
                raise ValueError(
                    f"classnames: {name[:40]!r} in the template {template!r} exceeds the limit of "
                    f"{self.context_length} tokens of {self.name}; shorten it"
                )
        return tokens

    def describe(self) -> Description:
        """Describe the model's architecture and the methods, prompts and fast paths it supports."""
        from ..methods.describe import describe  # avoids a circular import

        return describe(self)
