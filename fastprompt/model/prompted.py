"""`PromptedCLIP`: learned prompts in a frozen CLIP, on either engine."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._utils.checks import check_classnames
from .._utils.dtypes import at_least_float32, own_precision
from .._utils.gradients import without_gradients
from ..clip.frozen import FrozenCLIP
from ..prompts.mixture import Head, MixtureHead, PlainMixtureHead
from ..prompts.values import PromptValues
from ..towers.base import Tower
from ..towers.engines import make_image_tower, make_text_tower, resolve_precision
from ..towers.text_layout import Position
from .classifier import CLIPClassifier, class_logits
from .compiling import compilable, compiled
from .outputs import Prepared, Seen

log = logging.getLogger(__name__)
T = TypeVar("T")


class PromptedCLIP(nn.Module):
    """Pixels ``[B, 3, S, S]`` in [0, 1] to logits ``[B, C]``, through prompts that learn.

    Args:
        clip: the frozen model.
        classnames: C distinct names.
        prompts: what learns: a module with ``values()``, such as `TextContext`, `DeepPrompts` or
            `PromptMixture`.
        position: where the class name stands, see `TextTower`.
        layers: image layers of the visual prompts; by default the first ones.
        engine: ``"fast"``, or ``"reference"``: the same features by open_clip's own modules, every
            class at full length and the text encoder inside every forward pass.
        precision: of the towers, see `CLIPClassifier`; with a head the text tower, which runs once
            in a step, keeps the weights' own.
        class_specific: each class has a context of its own.
        compile: run the towers through `torch.compile`, as whole graphs; by default the fast engine
            on a GPU. Towers of other kinds than open_clip's transformers run as they are.
        class_chunk: see `TextTower`.

    Raises:
        ValueError: prompts that don't fit the towers (depth, width, room for the longest name,
            refiners or visual prompts for a tower that takes none), prompts on another device, a
            bad engine or precision.
    """

    def __init__(
        self,
        clip: FrozenCLIP,
        classnames: Sequence[str],
        prompts: nn.Module,
        *,
        position: Position = "end",
        layers: Sequence[int] | None = None,
        engine: str = "fast",
        precision: str | None = None,
        class_specific: bool = False,
        compile: bool | None = None,
        class_chunk: int | None = None,
    ) -> None:
        super().__init__()
        self.clip, self.classnames = clip, check_classnames(classnames)
        self.prompts, self.engine = prompts, engine
        self.precision = resolve_precision(clip, engine, precision)
        if compile and engine == "reference":
            raise ValueError("compile must be False with engine='reference': it runs eagerly")
        if class_chunk is not None and engine == "reference":
            raise ValueError("class_chunk must be None with engine='reference': it takes all")
        if compile is None:
            compile = engine == "fast" and clip.device.type == "cuda"
        if not callable(getattr(prompts, "values", None)):
            raise TypeError(
                f"prompts must be a module with values(), such as DeepPrompts, got "
                f"{type(prompts).__name__}"
            )
        values = self._values()
        if values.context.device != clip.device:
            raise ValueError(
                f"prompts are on {values.context.device}, {clip.name} is on {clip.device}: "
                "move one of them"
            )
        options: dict[str, Any] = {"engine": engine, "precision": precision}
        depth = 0 if values.visual is None else len(values.visual)
        self.image: Tower = make_image_tower(
            clip, range(depth) if layers is None else layers, **options
        )
        self.text = make_text_tower(
            clip,
            self.classnames,
            values.context.shape[-2],
            position=position,
            class_chunk=class_chunk,
            class_specific=class_specific,
            n_prompts=None if self.head is None else len(values.context),
            **{**options, **self._text_precision()},
        )
        self._check(values)
        self.compiled = compile
        for tower in (self.text, self.image):
            if compile and not compilable(tower):
                log.warning("%s: its %s runs uncompiled", clip.name, type(tower).__name__)
        self._functions: dict[Callable[..., Any], Callable[..., Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # a copy compiles anew: compiled code is of one process
        return {**self.__dict__, "_functions": {}}

    @property
    def refiners(self) -> nn.ModuleList | None:
        """The prompts' token refiners, if they have some."""
        return getattr(self.prompts, "refiners", None)

    @property
    def text_refiners(self) -> nn.ModuleList | None:
        """The same of the text tower."""
        return getattr(self.prompts, "text_refiners", None)

    @property
    def head(self) -> Head | None:
        """What makes logits of K prompts' features; None is the cosine of one prompt's."""
        head = getattr(self.prompts, "head", None)
        if self.engine == "reference" and isinstance(head, MixtureHead):
            return PlainMixtureHead(head)
        return head

    @property
    def class_chunk(self) -> int | None:
        """Classes whose text features are computed at once; None on the reference engine: all."""
        return getattr(self.text, "class_chunk", None)

    def _text_precision(self) -> dict[str, str]:
        """A router lives by the prompts' features' differences, which rounding would swamp."""
        return {} if self.head is None else {"precision": own_precision(self.clip.dtype)}

    def _values(self) -> PromptValues:
        prompts: Any = self.prompts
        return prompts.values()

    def _check(self, values: PromptValues) -> None:
        """Raise what the towers would of these shapes, before they have run anything."""
        self.text.check(values.context, values.deep, self.text_refiners)
        self.image.check(values.visual, self.refiners)  # type: ignore[operator]

    # what may be compiled: tensors in, tensors out

    def _run(self, function: Callable[..., T], tower: Tower, *tensors: Tensor | None) -> T:
        """A method of this class, compiled where that is asked for and its tower takes it."""
        self.text.refresh()
        self.image.refresh()
        if not self.compiled or not compilable(tower):
            return function(self, *tensors)
        if function not in self._functions:
            self._functions[function] = compiled(function)
        return self._functions[function](self, *tensors)

    def _text_features(self, context: Tensor, deep: Tensor | None) -> Tensor:
        features = at_least_float32(self.text(context, deep, self.text_refiners))
        # a head normalizes, or does not, by itself
        return features if self.head is not None else F.normalize(features, dim=-1)

    def _image_features(self, images: Tensor, visual: Tensor | None) -> Tensor:
        return at_least_float32(self.image(images, visual, self.refiners))

    def _image_layers(self, images: Tensor, visual: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        features, layers = self.image(images, visual, self.refiners, keep_layers=True)
        return at_least_float32(features), layers

    def _attack_loss(
        self,
        images: Tensor,
        labels: Tensor,
        text: Tensor,
        visual: Tensor | None,
        *prepared: Tensor,
    ) -> Tensor:
        logits = self.logits(self._image_features(images, visual), text, *prepared)
        return F.cross_entropy(logits, labels, reduction="sum")

    # what tuners call

    def attack_loss(self, images: Tensor, labels: Tensor, *fixed: Tensor | None) -> Tensor:
        """Cross-entropy, summed, with what `Prepared.detached` gives held fixed."""
        return self._run(PromptedCLIP._attack_loss, self.image, images, labels, *fixed)

    def attack_reads(self) -> list[Tensor]:
        """The tensors that `attack_loss` reads beside its arguments."""
        self.image.refresh()
        visual: nn.Module = getattr(self.image, "visual", self.clip.model)  # may be a cast copy
        learned = (m for m in (self.refiners, self.head) if isinstance(m, nn.Module))
        held = [visual, self.image, *learned]
        tensors = [t for m in held for t in (*m.parameters(), *m.buffers())]
        scale: Any = self.clip.model.logit_scale
        return [*tensors, scale]

    def class_features(self, values: PromptValues | None = None) -> Tensor:
        """Class features of the prompts as they are now, float32 at least.

        L2-normalized ``[C, D]``; with a head as the tower gives them, ``[K, C, D]``.
        """
        values = values or self._values()
        return self._run(PromptedCLIP._text_features, self.text, values.context, values.deep)

    def image_features(self, images: Tensor, values: PromptValues | None = None) -> Tensor:
        """Raw image features ``[B, D]``, float32 at least, through the visual prompts."""
        values = values or self._values()
        return self._run(PromptedCLIP._image_features, self.image, images, values.visual)

    def logits(self, image_features: Tensor, class_features: Tensor, *prepared: Tensor) -> Tensor:
        """Logits ``[B, C]`` of raw image features and class features; ``prepared`` by the head."""
        return class_logits(self.clip, image_features, class_features, self.head, *prepared)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, C]`` with a graph to pixels and prompts."""
        values = self._values()
        return self.logits(self.image_features(images, values), self.class_features(values))

    def frozen_prompts(self) -> AbstractContextManager[None]:
        """Inside, no graph of the prompts is built, nor of what else learns with them."""
        return without_gradients(self.prompts)

    def prepare(self) -> Prepared:
        """What a tuning step needs of the prompts, once: its attack and its loss share it."""
        values = self._values()
        text = self.class_features(values)
        return Prepared(values, text, () if self.head is None else self.head.prepare(text.detach()))

    def see(
        self, images: Tensor, prepared: Prepared | None = None, *, keep_layers: bool = False
    ) -> Seen:
        """Logits, features, with ``keep_layers`` the layers' outputs; with a graph to the prompts.

        The reference engine computes its own class features, whatever ``prepared`` holds.
        """
        if prepared is None or self.engine == "reference":
            prepared = self.prepare()
        layers: list[Tensor] = []
        if keep_layers:
            features, layers = self._run(
                PromptedCLIP._image_layers, self.image, images, prepared.values.visual
            )
        else:
            features = self.image_features(images, prepared.values)
        return Seen(self.logits(features, prepared.text, *prepared.head), features, layers)

    def see_both(
        self,
        images: Tensor,
        adv: Tensor,
        prepared: Prepared | None = None,
        *,
        keep_layers: bool = False,
    ) -> tuple[Seen, Seen]:
        """`see` of clean and of adversarial images.

        The fast engine makes one pass over both; the reference engine two, each with its own class
        features.
        """
        if self.engine == "reference":
            clean = self.see(images, keep_layers=keep_layers)
            return clean, self.see(adv, keep_layers=keep_layers)
        both = self.see(torch.cat([images, adv]), prepared, keep_layers=keep_layers)
        sizes = [len(images), len(adv)]
        parts = zip(both.logits.split(sizes), both.features.split(sizes), strict=True)
        layers = (
            zip(*(x.split(sizes) for x in both.layers), strict=True) if keep_layers else ((), ())
        )
        clean, attacked = (Seen(*p, list(x)) for p, x in zip(parts, layers, strict=True))
        return clean, attacked

    def pair(
        self, images: Tensor, adv: Tensor, prepared: Prepared | None = None
    ) -> tuple[Tensor, Tensor]:
        """The logits of `see_both`."""
        clean, attacked = self.see_both(images, adv, prepared)
        return clean.logits, attacked.logits

    def classifier(self) -> CLIPClassifier:
        """The classifier of the prompts as they are now: further tuning does not change it."""
        with torch.no_grad():
            text, visual, *_ = self.prepare().detached()
        assert text is not None
        refiners, head = copy.deepcopy((self.refiners, self.head))
        for module in (refiners, head):
            if isinstance(module, nn.Module):
                module.requires_grad_(False)
        return CLIPClassifier(
            self.clip,
            text.clone(),
            self.classnames,
            engine=self.engine,
            precision=self.precision,
            image_tower=self.image,
            visual=None if visual is None else visual.clone(),
            refiners=refiners,
            head=head,
        )
