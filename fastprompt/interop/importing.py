"""Create a tuner from a checkpoint of the original code of a method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
from torch import nn

from .._utils.checks import check_classnames
from ..clip.frozen import FrozenCLIP
from ..clip.load import load_clip
from ..methods.registry import TUNERS
from ..prompts.deep import why_no_deep_prompts
from ..tuning.config import field_names
from ..tuning.tuner import Tuner
from .checkpoints import ForeignPrompts, Kind, read_prompts

# the first method is the default; only APT supports class-specific contexts
_METHODS: dict[Kind, tuple[str, ...]] = {
    "context": ("apt", "advpt"),
    "class-specific context": ("apt",),
    "multi-modal": ("capt", "nap"),
}


def import_prompts(
    path: str | Path,
    clip: FrozenCLIP | nn.Module | str,
    classnames: Sequence[str],
    *,
    method: str | None = None,
    **settings: Any,
) -> Tuner:
    """Create a tuner with the prompts of a checkpoint (see `read_prompts`), to evaluate or to save.

    To tune the prompts further, save the tuner and pass its run folder as ``init_from`` to a new
    tuner, because `Tuner.fit` initializes the prompts from the settings.

    Args:
        path: the checkpoint.
        clip: the model the prompts were tuned on; the file does not name it, so only widths and
            the number of layers are checked.
        classnames: the class names. Class-specific contexts need the classes they were tuned on, in
            the same order; the checkpoint records only their number.
        method: ``"apt"`` (default) or ``"advpt"`` for a context, ``"apt"`` for class-specific
            contexts, ``"capt"`` (default) or ``"nap"``, without refiners, for multi-modal prompts.
        **settings: the method's other settings.

    Raises:
        FileNotFoundError, ValueError: as `read_prompts`; also if the method does not fit the
            prompts, the model has other widths (some that fit are named) or too few layers, the
            number of classes differs, or a setting is determined by the checkpoint.
    """
    prompts = read_prompts(path)
    allowed = _METHODS[prompts.kind]
    method = allowed[0] if method is None else method
    if method not in allowed:
        raise ValueError(
            f"method must be {' or '.join(map(repr, allowed))} for {path}, which has "
            f"{_a(prompts.kind)}, got {method!r}"
        )
    decided: dict[str, Any] = {
        "n_ctx": prompts.context.shape[-2],
        "ctx_init": None,
        "class_specific": prompts.context.ndim == 3,
        "depth": prompts.depth,
        "refiners": False,
        "text_refiners": False,
        "init_from": None,
    }
    known = field_names(TUNERS[method].Config)
    own = {key: value for key, value in decided.items() if key in known}
    if both := sorted(own.keys() & settings.keys()):
        name = both[0]
        raise ValueError(f"{name} is set by {path} ({own[name]}); omit it")
    names = check_classnames(classnames)
    if prompts.context.ndim == 3 and len(names) != len(prompts.context):
        raise ValueError(
            f"classnames must be the {len(prompts.context)} that {path} was tuned on, in the same "
            f"order, since its context is class-specific; got {len(names)}"
        )
    clip = clip if isinstance(clip, FrozenCLIP) else load_clip(clip)
    _check_model(clip, prompts, path)
    tuner = TUNERS[method](clip, names, **own, **settings)
    tuner.prompts.load_state_dict(prompts.state())
    return tuner


def _a(kind: Kind) -> str:
    return "multi-modal prompts" if kind == "multi-modal" else f"a {kind}"


def _check_model(clip: FrozenCLIP, prompts: ForeignPrompts, path: str | Path) -> None:
    """Raise if the model supports the prompts but has other widths or too few layers."""
    multi_modal = prompts.maps is not None
    unfit = why_no_deep_prompts(clip) if multi_modal else clip.why_no_text_prompts()
    if unfit:
        return  # the tuner raises that the model type is unsupported
    parts = clip.text_parts
    visual: Any = clip.model.visual
    held, has = f"text width {prompts.text_width}", f"text width {parts.width}"
    if multi_modal:
        held += f", image width {prompts.image_width}"
        has += f", image width {visual.conv1.out_channels}"
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
