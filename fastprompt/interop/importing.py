"""Create a tuner from a checkpoint of the original code of a method."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import nn

from .._utils.checks import check_classnames
from ..clip.frozen import FrozenCLIP
from ..clip.load import load_clip
from ..clip.parts import image_width, text_owner
from ..methods.registry import TUNERS
from ..prompts.deep import why_no_deep_prompts
from ..towers.template import DEFAULT, POSITIONS
from ..tuning.config import field_names
from ..tuning.tuner import Tuner
from .checkpoints import ForeignPrompts, Kind, read_prompts
from .words import Words, token_ids

# the first method is the default; only APT supports class-specific contexts
_METHODS: dict[Kind, tuple[str, ...]] = {
    "context": ("apt", "advpt"),
    "class-specific context": ("apt",),
    "multi-modal": ("capt", "nap"),
}


def import_prompts(
    path: str | Path,
    clip: FrozenCLIP | nn.Module | str,
    classnames: Sequence[str] | None = None,
    *,
    method: str | None = None,
    template: str | None = None,
    **settings: Any,
) -> Tuner:
    """Create a tuner with the prompts of a checkpoint (see `read_prompts`), to evaluate or to save.

    To tune the prompts further, save the tuner and pass its run folder as ``init_from`` to a new
    tuner, because `Tuner.fit` initializes the prompts from the settings.

    Checkpoints store the token embeddings behind the context. They are decoded with the model's
    vocabulary, which gives the class names and the fixed words and shows whether the model is the
    one of tuning. For classifiers of other classes, call `Tuner.classifier_for`.

    Args:
        path: the checkpoint.
        clip: the model the prompts were tuned on.
        classnames: the class names of tuning, in the same order; by default those decoded from the
            checkpoint (in lower case). In multi-modal prompts, the first words that all classes
            share then count as fixed words.
        method: ``"apt"`` (default) or ``"advpt"`` for a context, ``"apt"`` for class-specific
            contexts, ``"capt"`` (default) or ``"nap"`` for multi-modal prompts, ``"nap"`` for those
            with token refiners.
        template: positions of context, fixed words and class name, see `TunerConfig`. By default
            the decoded fixed words, then the class name. Checkpoints do not record the position of
            the class name: it is read from the ``log.txt`` of the same output folder, if there is
            one, and is otherwise at the end, the default of all these methods.
        **settings: the method's other settings.

    Raises:
        FileNotFoundError, ValueError: as `read_prompts`; also if the method does not fit the
            prompts, the model is another one than that of tuning (its vocabulary, image encoder,
            widths or number of layers), the class names or the template contradict the checkpoint,
            or a setting is determined by the checkpoint.
    """
    clip = clip if isinstance(clip, FrozenCLIP) else load_clip(clip)
    return tuner_with(read_prompts(path), path, clip, classnames, method, template, **settings)


def tuner_with(
    prompts: ForeignPrompts,
    path: str | Path,
    clip: FrozenCLIP,
    classnames: Sequence[str] | None = None,
    method: str | None = None,
    template: str | None = None,
    **settings: Any,
) -> Tuner:
    """Create a tuner with the prompts read from ``path``; see `import_prompts`."""
    method = _method(prompts, method, path)
    _check_model(clip, prompts, path)
    try:
        names, template = _names_and_template(prompts, clip, classnames, template, path)
    except ValueError as error:
        if str(error).startswith(("classnames", "template", "clip")):
            raise
        raise ValueError(f"path: {path} {error}") from None
    decided: dict[str, Any] = {
        "n_ctx": prompts.context.shape[-2],
        "ctx_init": None,
        "class_specific": prompts.context.ndim == 3,
        "depth": prompts.depth,
        "refiners": bool(prompts.refiners),
        "text_refiners": False,
        "coupling": prompts.coupling,
        "template": template,
        "init_from": None,
    }
    known_names = field_names(TUNERS[method].Config)
    own = {key: value for key, value in decided.items() if key in known_names}
    if both := sorted(own.keys() & settings.keys()):
        name = both[0]
        raise ValueError(f"{name} is set by {path} ({own[name]}); omit it")
    tuner = TUNERS[method](clip, names, **own, **settings)
    tuner.prompts.load_state_dict(prompts.state())
    return tuner


def _method(prompts: ForeignPrompts, method: str | None, path: str | Path) -> str:
    allowed = ("nap",) if prompts.refiners else _METHODS[prompts.kind]
    if method is not None and method not in allowed:
        raise ValueError(
            f"method must be {' or '.join(map(repr, allowed))} for {path}, which has "
            f"{_a(prompts.kind)}{' and token refiners' if prompts.refiners else ''}, got "
            f"{method!r}"
        )
    return allowed[0] if method is None else method


def _names_and_template(
    prompts: ForeignPrompts,
    clip: FrozenCLIP,
    classnames: Sequence[str] | None,
    template: str | None,
    path: str | Path,
) -> tuple[list[str], str]:
    """Return class names and template, checked against the checkpoint's token embeddings."""
    n_ctx, multi_modal = prompts.context.shape[-2], prompts.kind == "multi-modal"
    position = None if multi_modal else _position(Path(path))
    if prompts.suffix is not None:
        words = Words(clip, token_ids(clip, prompts.suffix))
        if classnames is None:
            names = words.names(fixed_words=multi_modal)
        else:
            names = check_classnames(classnames)
        template = template or position or words.template(names)
        words.check(template, names, n_ctx)
        return names, template
    if classnames is None:
        raise ValueError(f"classnames must be given: {path} has no token_suffix to read them from")
    names = check_classnames(classnames)
    if prompts.classes not in (None, len(names)):
        raise ValueError(
            f"classnames must be the {prompts.classes} that {path} was tuned on, in the same "
            f"order, got {len(names)}"
        )
    if template is None and multi_modal:
        raise ValueError(
            f"template must be given: {path} has no token_suffix, the only record of fixed words "
            "between context and class name (MaPLe's default with 2 tokens is '[ctx] of a {}.')"
        )
    return names, template or position or DEFAULT


def _position(path: Path) -> str | None:
    """Return the template that ``log.txt`` in the checkpoint's output folder gives, if any."""
    log_file = path.parent.parent / "log.txt"
    if not log_file.is_file():
        return None
    text = log_file.read_text("utf-8", errors="replace")
    found = sorted(set(re.findall(r"CLASS_TOKEN_POSITION:\s*'?(\w+)", text)))
    if not found:
        return None
    if len(found) > 1 or found[0] not in POSITIONS:
        raise ValueError(
            f"template must be given: {log_file} has CLASS_TOKEN_POSITION {' and '.join(found)}; "
            f"the templates are {POSITIONS}"
        )
    return POSITIONS[found[0]]


def _a(kind: Kind) -> str:
    return "multi-modal prompts" if kind == "multi-modal" else f"a {kind}"


def _check_model(clip: FrozenCLIP, prompts: ForeignPrompts, path: str | Path) -> None:
    """Raise if the model supports the prompts but is visibly another one than that of tuning."""
    multi_modal = prompts.maps is not None
    unfit = why_no_deep_prompts(clip) if multi_modal else clip.why_no_text_prompts()
    if unfit:
        raise ValueError(f"clip: {clip.name} does not support the prompts of {path}: {unfit}")
    parts = clip.text_parts
    visual: Any = clip.model.visual
    held, has = f"text width {prompts.text_width}", f"text width {parts.width}"
    if multi_modal:
        held += f", image width {prompts.image_width}"
        has += f", image width {image_width(clip.model)}"
    if held != has:
        names = _models(prompts.text_width, prompts.image_width)
        raise ValueError(
            f"clip: {path} has prompts of {held}, but {clip.name} has {has}"
            + (f"; models that fit: {', '.join(names)}" if names else "")
        )
    layers = (parts.layers, len(visual.transformer.resblocks)) if multi_modal else (1, 1)
    if prompts.depth > min(layers):
        raise ValueError(
            f"clip: {path} has prompts for {prompts.depth} layers of both encoders, but "
            f"{clip.name} has {layers[0]} (text) and {layers[1]} (image)"
        )
    own: dict[str, Any] = {"logit_scale": clip.model.logit_scale}
    for encoder, module in (("image", visual), ("text", text_owner(clip.model))):
        own |= {f"{encoder}_encoder.{k}": v for k, v in module.state_dict().items()}
    for name, value in prompts.frozen.items():
        if name not in own or not _equal(own[name], value):
            image = name.startswith("image_encoder.")
            raise ValueError(
                f"clip: {path} was tuned with other weights than those of {clip.name}: {name} "
                f"differs; pass {'them as image_weights' if image else 'the model of tuning'}"
            )


def _equal(own: torch.Tensor, stored: torch.Tensor) -> bool:
    """Whether a weight is the stored one, in the dtype of the file."""
    return own.shape == stored.shape and torch.equal(own.cpu().to(stored.dtype), stored)


def _models(text_width: int, image_width: int | None, most: int = 5) -> list[str]:
    """Return up to ``most`` open_clip models with these widths, short ViT names first."""
    fit: list[str] = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name) or {}
        text, vision = config.get("text_cfg", {}), config.get("vision_cfg", {})
        # ResNets have a list of layers per stage and no single width
        vit = isinstance(vision.get("layers"), int) and "timm_model_name" not in vision
        if "hf_model_name" in text or text.get("width") != text_width:
            continue
        if image_width is None or (vit and vision.get("width") == image_width):
            fit.append(name)
    return sorted(fit, key=lambda name: (not name.startswith("ViT-"), len(name), name))[:most]
