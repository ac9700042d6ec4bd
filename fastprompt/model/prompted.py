"""`PromptedCLIP`: a frozen CLIP with trainable prompts, on either engine."""

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
from .._utils.dtypes import AUTO, at_least_float32, own_precision
from .._utils.gradients import without_gradients
from ..clip.frozen import FrozenCLIP
from ..prompts.mixture import Head, MixtureHead, PlainMixtureHead
from ..prompts.values import PromptValues
from ..towers import ImageTower
from ..towers.base import Tower
from ..towers.engines import make_image_tower, make_text_tower, resolve_precision
from ..towers.image import one_block
from ..towers.template import DEFAULT
from .class_shards import ClassShards
from .classifier import CLIPClassifier, class_logits
from .compiling import compilable, compiled, why_uncompiled
from .outputs import Prepared, Seen, Visual
from .padding import cut, padded

log = logging.getLogger(__name__)
T = TypeVar("T")


class PromptedCLIP(nn.Module):
    """CLIP with trainable prompts: pixels ``[B, C, H, W]`` in [0, 1] to logits ``[B, C]``.

    Args:
        clip: the frozen model.
        classnames: C distinct class names.
        prompts: module with trainable parameters and a method ``values()``, such as `TextContext`,
            `DeepPrompts` or `PromptMixture`.
        template: positions of context, fixed words and class name, see `TextTower`.
        layers: image layers that get the visual prompts; by default the first ones.
        engine: ``"fast"``, or ``"reference"``: the same features from open_clip's own modules,
            which encode every class at full length, and the text in every forward pass. A fast
            tower that does not reproduce the model's own features is replaced, see
            `make_text_tower` and `make_image_tower`.
        precision: precision of the towers; by default ``"auto"``, see `resolve_precision`. Prompts,
            features, logits and losses are at least float32. If the prompts have a head
            (router), the text tower, which runs once per step, keeps the weights' precision unless
            ``precision`` is ``"fp64"``.
        class_specific: if True, each class has a separate context.
        compile: compile the towers with `torch.compile`: the text tower as a single graph, and one
            block of the image tower for all of them, because it has several uses and sizes. By
            default only for the fast engine on a GPU, where Triton is installed. Encoders other
            than open_clip's transformers run uncompiled.
        class_chunk: see `TextTower`.
        class_shards: 1, or the number of processes of `torch.distributed`'s default group: each
            then encodes its part of the classes, and all get the features of all classes.
            `prepare`, `class_features` and their backward pass need all the processes.

    Raises:
        ValueError: the prompts don't fit the towers (depth, width, room for the longest name,
            refiners or visual prompts for an encoder that supports none) or are on another device,
            no engine reproduces an encoder, the engine or precision is invalid, ``compile`` is True
            on a GPU without Triton, or ``class_shards`` is neither 1 nor the number of processes.
    """

    def __init__(
        self,
        clip: FrozenCLIP,
        classnames: Sequence[str],
        prompts: nn.Module,
        *,
        template: str = DEFAULT,
        layers: Sequence[int] | None = None,
        engine: str = "fast",
        precision: str = AUTO,
        class_specific: bool = False,
        compile: bool | None = None,
        class_chunk: int | None = None,
        class_shards: int = 1,
    ) -> None:
        super().__init__()
        self.clip, self.classnames = clip, check_classnames(classnames)
        self.class_specific = class_specific
        self._shards = ClassShards(class_shards, len(self.classnames), engine)
        self.prompts, self.engine = prompts, engine
        self.precision = resolve_precision(clip, engine, precision)
        if compile and engine == "reference":
            raise ValueError("compile must be False with engine='reference', which runs eagerly")
        if class_chunk is not None and engine == "reference":
            raise ValueError(
                "class_chunk must be None with engine='reference', which encodes all classes at "
                "once"
            )
        if compile is None:
            compile = engine == "fast" and clip.device.type == "cuda" and not why_uncompiled()
        elif compile and clip.device.type == "cuda" and (reason := why_uncompiled()):
            raise ValueError(f"compile must be False on {clip.device}: {reason}")
        if not callable(getattr(prompts, "values", None)):
            raise TypeError(
                f"prompts must be a module with a method values(), such as DeepPrompts, got "
                f"{type(prompts).__name__}"
            )
        values = self._values()
        if values.context.device != clip.device:
            raise ValueError(
                f"prompts are on {values.context.device}, but {clip.name} is on {clip.device}; "
                "move them to one device"
            )
        options: dict[str, Any] = {"engine": engine, "precision": self.precision}
        depth = 0 if values.visual is None else len(values.visual)
        self.image: Tower = make_image_tower(
            clip, range(depth) if layers is None else layers, **options
        )
        self.text = make_text_tower(
            clip,
            self._shards.own_names(self.classnames),
            values.context.shape[-2],
            template=template,
            class_chunk=class_chunk,
            class_specific=class_specific,
            n_prompts=None if self.head is None else len(values.context),
            **{**options, **self._text_precision()},
        )
        self._check(values)
        self.compiled = compile
        for tower in (self.text, self.image):
            if compile and not compilable(tower):
                log.warning(
                    "%s: its %s runs code of another library and is not compiled",
                    clip.name,
                    type(tower).__name__,
                )
        # size of a tuner's batches, to which compiled code pads the others: each size is compiled
        self.batch: int | None = None
        self._functions: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._read: tuple[int, list[Tensor]] | None = None  # the clip's version, `attack_reads`

    def __getstate__(self) -> dict[str, Any]:
        # compiled functions belong to one process; a copy compiles its own
        return {**self.__dict__, "_functions": {}, "_read": None}

    @property
    def refiners(self) -> nn.ModuleList | None:
        """Token refiners of the image tower, if the prompts have them."""
        return getattr(self.prompts, "refiners", None)

    @property
    def text_refiners(self) -> nn.ModuleList | None:
        """Token refiners of the text tower, if the prompts have them."""
        return getattr(self.prompts, "text_refiners", None)

    @property
    def head(self) -> Head | None:
        """Module that computes logits from K prompts' features.

        None for a single prompt, whose logits are scaled cosines.
        """
        head = getattr(self.prompts, "head", None)
        if self.engine == "reference" and isinstance(head, MixtureHead):
            return PlainMixtureHead(head)
        return head

    @property
    def class_chunk(self) -> int | None:
        """Number of classes encoded at once; None on the reference engine, which encodes all."""
        return getattr(self.text, "class_chunk", None)

    def _text_precision(self) -> dict[str, str]:
        """Keep the weights' precision for a router: it depends on small feature differences."""
        if self.head is None or self.precision == "fp64":
            return {}
        return {"precision": own_precision(self.clip.dtype)}

    def _values(self) -> PromptValues:
        prompts: Any = self.prompts
        return prompts.values()

    def _check(self, values: PromptValues) -> None:
        """Check the prompt shapes against the towers before any computation."""
        self.text.check(self._own_context(values), values.deep, self.text_refiners)
        self.image.check(values.visual, self.refiners)  # type: ignore[operator]

    def _own_context(self, values: PromptValues) -> Tensor:
        """Return the context of the classes that this process encodes."""
        return self._shards.own(values.context) if self.class_specific else values.context

    @property
    def class_shards(self) -> int:
        """Number of processes that divide the classes for the text tower."""
        return self._shards.count

    @property
    def _full(self) -> int | None:
        """Size to which compiled code pads a batch; None for no padding."""
        return self.batch if self.compiled else None

    def _visual(self, values: PromptValues) -> Visual:
        """Return what the image tower needs of the prompts, computed once for all images."""
        visual, refiners = values.visual, self.refiners
        if not isinstance(self.image, ImageTower) or (visual is None and refiners is None):
            return visual
        return self.image.share(visual, None if refiners is None else tuple(refiners))

    # functions with only tensors, and tuples of them, as inputs and outputs

    def _run(self, function: Callable[..., T], tower: Tower, *tensors: Any) -> T:
        """Run a method of this class; that of the text tower is compiled as a whole."""
        self.text.refresh()
        self.image.refresh()
        if tower is self.text:
            function = self._compiled(function, tower)
        return function(self, *tensors)

    def _compiled(self, function: Callable[..., T], tower: Tower) -> Callable[..., T]:
        """Return a function of a tower, compiled if requested and if the tower supports it."""
        if not self.compiled or not compilable(tower):
            return function
        if function not in self._functions:
            self._functions[function] = compiled(function)
        return self._functions[function]

    def _text_features(self, context: Tensor, deep: Tensor | None) -> Tensor:
        features = at_least_float32(self.text(context, deep, self.text_refiners))
        # a head takes unnormalized features
        return features if self.head is not None else F.normalize(features, dim=-1)

    def _image(self, images: Tensor, visual: Visual, **options: Any) -> Any:
        if isinstance(self.image, ImageTower):
            options["run_block"] = self._compiled(one_block, self.image)
        return self.image(images, visual, self.refiners, **options)

    def _image_features(self, images: Tensor, visual: Visual) -> Tensor:
        return at_least_float32(self._image(images, visual))

    def _image_layers(self, images: Tensor, visual: Visual) -> tuple[Tensor, list[Tensor]]:
        features, layers = self._image(images, visual, keep_layers=True)
        return at_least_float32(features), layers

    def _attack_logits(
        self, images: Tensor, text: Tensor, visual: Visual, *prepared: Tensor
    ) -> Tensor:
        return self.logits(self._image_features(images, visual), text, *prepared)

    def _attack_loss(self, images: Tensor, labels: Tensor, *fixed: Any) -> Tensor:
        return F.cross_entropy(self._attack_logits(images, *fixed), labels, reduction="sum")

    # methods that tuners call

    def attack_loss(self, images: Tensor, labels: Tensor, *fixed: Any) -> Tensor:
        """Return the summed cross-entropy; ``fixed`` is the output of `Prepared.detached`."""
        return self._run(PromptedCLIP._attack_loss, self.image, images, labels, *fixed)

    def attack_logits(self, images: Tensor, *fixed: Any) -> Tensor:
        """Return the logits ``[B, C]``, from which other losses than `attack_loss` follow."""
        return self._run(PromptedCLIP._attack_logits, self.image, images, *fixed)

    def attack_reads(self) -> list[Tensor]:
        """Return the tensors that `attack_loss` and `attack_logits` read besides their arguments.

        The list is kept until the weights change: in each step, only its addresses are compared.
        """
        self.image.refresh()
        if self._read is None or self._read[0] != self.clip.version:
            self._read = self.clip.version, self._find_reads()
        return self._read[1]

    def _find_reads(self) -> list[Tensor]:
        # `visual` may be a copy of the encoder in another precision, `model` may contain one
        model: nn.Module = getattr(self.image, "model", self.clip.model)
        visual: nn.Module = getattr(self.image, "visual", model)
        learned = (m for m in (self.refiners, self.head) if isinstance(m, nn.Module))
        held = [visual, self.image, *learned]
        tensors = [t for m in held for t in (*m.parameters(), *m.buffers())]
        scale: Any = self.clip.model.logit_scale
        return [*tensors, scale]

    def class_features(self, values: PromptValues | None = None) -> Tensor:
        """Compute the class features of ``values``, by default of the current prompts.

        They are L2-normalized, ``[C, D]``; if the prompts have a head, they are unnormalized,
        ``[K, C, D]``. Their dtype is at least float32.
        """
        values = values or self._values()
        context = self._own_context(values)
        features = self._run(PromptedCLIP._text_features, self.text, context, values.deep)
        return self._shards.join(features)

    def image_features(self, images: Tensor, values: PromptValues | None = None) -> Tensor:
        """Compute unnormalized image features ``[B, D]``, at least float32."""
        visual = self._visual(values or self._values())
        return self._run(PromptedCLIP._image_features, self.image, images, visual)

    def logits(self, image_features: Tensor, class_features: Tensor, *prepared: Tensor) -> Tensor:
        """Compute logits ``[B, C]``; the arguments are those of `class_logits`."""
        return class_logits(self.clip, image_features, class_features, self.head, *prepared)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits ``[B, C]`` with a graph to pixels and prompts."""
        values = self._values()
        return self.logits(self.image_features(images, values), self.class_features(values))

    def frozen_prompts(self) -> AbstractContextManager[None]:
        """Return a context manager that disables the gradients of all the prompts' parameters."""
        return without_gradients(self.prompts)

    def prepare(self) -> Prepared:
        """Compute the values that a step's attack and loss share, from the prompts alone."""
        recorded = torch.is_grad_enabled()
        # the code compiled for a step is used without gradients too
        with torch.set_grad_enabled(recorded or self.compiled):
            values = self._values()
            text = self.class_features(values)
            head = () if self.head is None else self.head.prepare(text.detach())
            prepared = Prepared(values, text, self._visual(values), head)
        return prepared if recorded else prepared.without_graph()

    def see(
        self, images: Tensor, prepared: Prepared | None = None, *, keep_layers: bool = False
    ) -> Seen:
        """Compute logits, features and, if requested, layer outputs, with a graph to the prompts.

        The reference engine ignores ``prepared`` and computes the class features again.
        """
        if prepared is None or self.engine == "reference":
            prepared = self.prepare()
        n, layers = len(images), list[Tensor]()
        images = padded(images, self._full)
        if keep_layers:
            features, layers = self._run(
                PromptedCLIP._image_layers, self.image, images, prepared.visual
            )
        else:
            features = self._run(PromptedCLIP._image_features, self.image, images, prepared.visual)
        features, layers = cut(features, n), [cut(x, n) for x in layers]
        return Seen(self.logits(features, prepared.text, *prepared.head), features, layers)

    def see_both(
        self,
        images: Tensor,
        adv: Tensor,
        prepared: Prepared | None = None,
        *,
        keep_layers: bool = False,
    ) -> tuple[Seen, Seen]:
        """Apply `see` to clean and to adversarial images.

        The fast engine runs one pass over both batches; the reference engine runs two and computes
        the class features in each.
        """
        if self.engine == "reference":
            clean = self.see(images, keep_layers=keep_layers)
            return clean, self.see(adv, keep_layers=keep_layers)
        pair = [padded(x, self._full) for x in (images, adv)]
        both = self.see(torch.cat(pair), prepared, keep_layers=keep_layers)

        def parts(x: Tensor) -> list[Tensor]:
            halves = x.split([len(each) for each in pair])
            return [cut(half, len(each)) for half, each in zip(halves, (images, adv), strict=True)]

        layers = zip(*map(parts, both.layers), strict=True) if keep_layers else ((), ())
        seen = zip(parts(both.logits), parts(both.features), layers, strict=True)
        clean, attacked = (Seen(logits, features, list(x)) for logits, features, x in seen)
        return clean, attacked

    def pair(
        self, images: Tensor, adv: Tensor, prepared: Prepared | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the logits of `see_both`."""
        clean, attacked = self.see_both(images, adv, prepared)
        return clean.logits, attacked.logits

    def classifier(self) -> CLIPClassifier:
        """Return a classifier with the current prompts; further tuning does not change it."""
        with torch.no_grad():
            prepared = self.prepare()
        text, visual = prepared.text, prepared.values.visual
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
