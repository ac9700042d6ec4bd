"""CLIP classifier from pixels to logits, an ordinary module that any attack library accepts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._utils.checks import check_classnames, check_templates
from .._utils.dtypes import AUTO, at_least_float32, check_precision, own_precision
from ..clip.frozen import FrozenCLIP
from ..clip.preprocess import Preprocess
from ..towers import ImageTower
from ..towers.compare import same
from ..towers.engines import make_image_tower, resolve_precision
from ..towers.packed import PackedImageTower, packs
from ..towers.plain_text import encode_plain
from ..towers.reference import ReferenceImageTower

if TYPE_CHECKING:  # return type
    from ..interop.to_transformers import InTransformers


class CLIPClassifier(nn.Module):
    """Map pixels ``[B, C, H, W]`` in [0, 1] to logits ``logit_scale * cos(f(x), t_c)``, ``[B, C]``.

    Args:
        clip: the frozen model; not copied, so that moving the classifier also moves the model.
        text_features: one L2-normalized text feature per class, ``[C, D]``; with a ``head``, the
            features that it takes, ``[K, C, D]``.
        classnames: the C class names.
        engine: ``"fast"`` skips all computation that does not affect the features; ``"reference"``
            runs open_clip's own image encoder. Their results are equal up to rounding.
        precision: ``"fp64"``, ``"fp32"``, ``"bf16"``, ``"fp16"`` or ``"auto"`` (see
            `resolve_precision`), for the image tower; by default the precision of the weights, to
            evaluate without extra rounding errors. Logits are at least float32.
        image_tower: image tower to use instead of making one; ``engine`` and ``precision`` must
            then describe it.
        visual: visual prompts of the image tower, ``[layers, V, width]``.
        refiners: token refiners of the image tower.
        head: computes the logits from the features instead of the cosine, such as `MixtureHead`.
    """

    text_features: Tensor
    visual: Tensor | None

    def __init__(
        self,
        clip: FrozenCLIP,
        text_features: Tensor,
        classnames: Sequence[str],
        *,
        engine: str = "fast",
        precision: str | None = None,
        image_tower: nn.Module | None = None,
        visual: Tensor | None = None,
        refiners: nn.ModuleList | None = None,
        head: Any = None,
    ) -> None:
        super().__init__()
        dimensions = 2 if head is None else 3
        if text_features.ndim != dimensions or text_features.shape[-2] != len(classnames):
            raise ValueError(
                f"text_features must be [{'' if head is None else 'K, '}{len(classnames)}, D], "
                "one row per class, "
                f"got {list(text_features.shape)}"
            )
        self.clip = clip
        self.classnames = list(classnames)
        self.engine = engine
        self.precision = own_precision(clip.dtype) if precision is None else precision
        if precision == AUTO:
            self.precision = resolve_precision(clip, engine, AUTO)
        self.image_tower = image_tower or make_image_tower(
            clip, engine=engine, precision=self.precision
        )
        text = text_features.detach()
        # for a head, whose tensors are prepared from them in the dtype of the image features
        self.register_buffer("text_features", text.double() if precision == "fp64" else text)
        self.register_buffer("visual", None if visual is None else visual.detach())
        self.refiners, self.head = refiners, head
        self._prepare_head()
        self.register_load_state_dict_post_hook(_prepare_again)  # type: ignore[no-untyped-call]

    def _prepare_head(self) -> None:
        """Compute the head's tensors that depend only on the text features, once for all images."""
        prepared = () if self.head is None else self.head.prepare(self.text_features)
        self._prepared = [f"prepared{i}" for i in range(len(prepared))]
        for name, tensor in zip(self._prepared, prepared, strict=True):
            self.register_buffer(name, tensor, persistent=False)

    @property
    def has_visual_prompts(self) -> bool:
        """Whether the image features depend on visual prompts or token refiners."""
        return self.visual is not None or self.refiners is not None

    @property
    def preprocess(self) -> Preprocess:
        """The transform of a PIL image to the classifier's pixels, ``[C, H, W]`` in [0, 1]."""
        return Preprocess.of(self.clip)

    def encode_image(self, images: Tensor) -> Tensor:
        """Return unnormalized image features ``[B, D]``, at least in the text features' dtype."""
        features = at_least_float32(self.image_tower(images, self.visual, self.refiners))
        return features.to(torch.promote_types(features.dtype, self.text_features.dtype))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, C]``, differentiable with respect to the pixels."""
        return self.logits(self.encode_image(images))

    def logits(self, image_features: Tensor) -> Tensor:
        """Compute logits ``[B, C]`` from unnormalized image features ``[B, D]``."""
        prepared = [getattr(self, name) for name in self._prepared]
        return class_logits(self.clip, image_features, self.text_features, self.head, *prepared)

    def in_precision(self, precision: str) -> CLIPClassifier:
        """Return this classifier with the image tower in the given precision.

        A reference tower runs the model's own modules: then the result has a converted copy of the
        model.
        """
        clip, tower = self.clip, self.image_tower
        if precision == AUTO:
            precision = resolve_precision(clip, self.engine, AUTO)
        own_modules = self.engine == "reference" or isinstance(tower, ReferenceImageTower)
        if own_modules and precision != own_precision(clip.dtype):
            clip = copy.deepcopy(clip).to(check_precision(precision, clip.device))
        layers = getattr(tower, "layers", ())
        return CLIPClassifier(
            clip,
            self.text_features,
            self.classnames,
            engine=self.engine,
            precision=precision,
            image_tower=make_image_tower(clip, layers, engine=self.engine, precision=precision),
            visual=self.visual,
            refiners=self.refiners,
            head=self.head,
        )

    def for_inference(self) -> CLIPClassifier:
        """Return this classifier with the fastest image tower for use without gradients.

        On a CPU in float32 that is a `PackedImageTower`, if its features are the same up to
        rounding; else this classifier is returned.
        """
        tower: Any = self.image_tower
        if type(tower) is not ImageTower or tower.dtype != torch.float32 or not packs(self.clip):
            return self
        fast = PackedImageTower(tower.clip, tower.layers)
        packed = CLIPClassifier(
            self.clip,
            self.text_features,
            self.classnames,
            engine=self.engine,
            precision=self.precision,
            image_tower=fast,
            visual=self.visual,
            refiners=self.refiners,
            head=self.head,
        )
        # blocks with hooks, adapters or other layers may compute more than their weights say
        shape = (fast.fewest, *self.clip.pixel_shape)
        images = torch.rand(shape, generator=torch.Generator(), dtype=torch.float32)
        with torch.no_grad():
            ours, own = packed.encode_image(images), self.encode_image(images)
        return packed if same(self.clip, ours, own) else self

    def to_transformers(self) -> InTransformers:
        """Return a ``CLIPModel`` of transformers and class features that give these logits.

        They are ``model.logit_scale.exp() * normalize(image_features) @ text_embeds.T``, with the
        model's image features of normalized pixels. The model keeps the frozen weights and its
        dtype; it is a copy. Requires the extra ``hf``.

        Returns:
            ``(model, text_embeds, classnames)``, ``text_embeds`` L2-normalized, ``[C, D]``.

        Raises:
            ImportError: transformers is not installed.
            ValueError: the classifier has visual prompts, token refiners or a router, or the model
                has no counterpart in transformers; the message says why.
        """
        from ..interop.to_transformers import to_transformers  # avoids a circular import

        return to_transformers(self)

    def routing_weights(self, images: Tensor) -> Tensor:
        """Return the router's weights of the K prompts for each image, ``[B, K]``.

        Raises:
            ValueError: the classifier has no router.
        """
        if not hasattr(self.head, "weights"):
            raise ValueError("this classifier has no router: it does not use a mixture of prompts")
        return self.head.weights(F.normalize(self.encode_image(images), dim=-1))


def _prepare_again(classifier: CLIPClassifier, _: object) -> None:
    # the loaded text features may differ
    classifier._prepare_head()


def class_logits(
    clip: FrozenCLIP,
    image_features: Tensor,
    text_features: Tensor,
    head: Any = None,
    *prepared: Any,
) -> Tensor:
    """Compute ``logit_scale * normalize(image_features) @ text_features.T`` (+ the model's bias).

    If given, ``head`` computes the logits, to which only the bias is added.

    Args:
        image_features: unnormalized, ``[B, D]``.
        text_features: L2-normalized, ``[C, D]``; with a head, the features that it takes.
        head: maps L2-normalized image features, text features, scale and ``prepared`` to logits.
        prepared: the tensors that the head's ``prepare`` returned.
    """
    # only one of the two may be float64: the model, the precision or both decide
    dtype = torch.promote_types(text_features.dtype, torch.float32)
    dtype = torch.promote_types(dtype, image_features.dtype)
    image = F.normalize(image_features.to(dtype), dim=-1)
    text_features = text_features.to(dtype)
    if head is None:
        logits = clip.logit_scale * image @ text_features.T
    else:
        logits = head(image, text_features, clip.logit_scale.to(image.dtype), *prepared)
    return logits if clip.logit_bias is None else logits + clip.logit_bias


def zero_shot(
    clip: FrozenCLIP,
    classnames: Sequence[str],
    templates: Sequence[str],
    *,
    engine: str = "fast",
    precision: str | None = None,
) -> CLIPClassifier:
    """Make a zero-shot classifier; see `FrozenCLIP.zero_shot`."""
    names = check_classnames(classnames)
    forms = check_templates(templates)
    encode = partial(encode_plain, clip) if engine == "fast" else clip.encode_tokens
    each = (encode(clip.name_tokens(names, form)) for form in forms)
    features = torch.stack([F.normalize(one, dim=-1) for one in each])
    text = F.normalize(at_least_float32(features.mean(dim=0)), dim=-1)
    return CLIPClassifier(clip, text, names, engine=engine, precision=precision)
