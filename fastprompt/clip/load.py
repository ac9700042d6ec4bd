"""`load_clip`: create a `FrozenCLIP` from a model name, a checkpoint or an open_clip model."""

import copy
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import open_clip
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from .._utils.checks import check_choice, check_image_size, check_numbers, check_path, shown
from .._utils.devices import usable_device
from .._utils.files import read_json
from .._utils.names import unknown
from .._utils.unpickling import check_sizes, first_line
from . import bundled
from .from_transformers import check_end, convert
from .frozen import FrozenCLIP, Tokenizer
from .image_weights import load_image_weights
from .parts import input_channels

_SCHEMES = ("hf-hub:", "local-dir:")


def load_clip(
    model: str | nn.Module | FrozenCLIP = bundled.DEFAULT,
    pretrained: str | Path | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_weights: str | Path | Mapping[str, Tensor] | None = None,
    image_size: int | Sequence[int] | None = None,
    source: Literal["open_clip", "transformers"] = "open_clip",
    device: str | torch.device | None = None,
    cache_dir: str | None = None,
) -> FrozenCLIP:
    """Load a CLIP model and freeze it.

    The features of both encoders are compared with those of this library's towers; a difference is
    logged as a warning, and the tower is not used. Load a model again after you change it.

    Args:
        model: ``"tiny-shapes"`` or ``"tiny-shapes-robust"`` (bundled); any open_clip model name,
            or one that starts with ``hf-hub:`` or ``local-dir:``; or an open_clip model object,
            which is copied, not modified (float16 and bfloat16 weights are converted to float32).
        pretrained: for an open_clip model name, one of its weight tags (downloaded) or the path of
            a checkpoint.
        tokenizer: maps N strings to token ids ``[N, context_length]``. Default: the model's own;
            for a model object, open_clip's standard tokenizer; required if the vocabulary sizes
            differ.
        mean, std: the pixel normalization, one value per channel. Default: the model's own, or
            OpenAI's; required if neither has as many values as the model has input channels.
        image_weights: a file or a state dict for the image encoder alone. TeCoA and FARE
            (adversarially fine-tuned encoders) are published in this format. Pickled code in a
            file is never executed, and a file that declares more content than it has is not read.
        image_size: another input size of the image encoder, for a model name: a side in pixels, or
            ``(height, width)``, each from 16 to 4096. The position embeddings are interpolated, as
            open_clip's ``force_image_size`` does. Default: the model's own.
        source: ``"transformers"`` for a transformers ``CLIPModel`` with a Vision Transformer:
            ``model`` is the object (copied), the folder of its ``save_pretrained``, or
            ``"org/name"`` (downloaded). The weights are mapped to open_clip's ``CLIP``; the
            features are the same. A folder's tokenizer and normalization are used. Requires the
            extra ``hf``.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``. Default: the CPU, or a model
            object's current device.
        cache_dir: the directory of the downloads.

    Raises:
        ValueError: the name is unknown (the message suggests similar ones), or the weights do not
            fit the model, or ``mean``, ``std`` or ``image_size`` do not; or a model of
            transformers has an option that open_clip's ``CLIP`` lacks (the message names it).
        TypeError: ``model`` is not a name or a model of ``source``.
        ImportError: ``source`` is ``"transformers"``, and transformers is not installed.
        RuntimeError: the weights could not be downloaded.
        ConnectionError: the same for ``source="transformers"``, and the cache does not have them.
        FileNotFoundError: a given file, folder or repository does not exist.
        PermissionError: a repository is private or gated, or does not exist.
    """
    check_choice(source, "source", ("open_clip", "transformers"))
    reload: dict[str, Any] | None = None
    pretrained = None if pretrained is None else str(check_path(pretrained, "pretrained"))
    if tokenizer is not None and not callable(tokenizer):
        raise TypeError(f"tokenizer must be callable, got {type(tokenizer).__name__}")
    device = None if device is None else usable_device(device)
    mean, std = check_numbers(mean, "mean"), check_numbers(std, "std")
    if isinstance(model, FrozenCLIP):
        given: dict[str, Any] = {"pretrained": pretrained, "tokenizer": tokenizer}
        given |= {"mean": mean, "std": std}
        given |= {"image_weights": image_weights, "image_size": image_size}
        extra = [k for k, v in given.items() if v is not None]
        if extra:
            raise ValueError(f"model is already a FrozenCLIP; do not pass {', '.join(extra)}")
        return model if device is None else model.to(device)
    if source == "transformers":
        if isinstance(model, (str, Path)) and tokenizer is None:
            reload = {"model": str(check_path(model, "model")), "source": source}
        for key, value in (("pretrained", pretrained), ("image_size", image_size)):
            if value is not None:
                raise ValueError(f"{key} must be None with source='transformers', got {value!r}")
        inner, tokenizer, name = convert(model, tokenizer, cache_dir)
        tokenizer = tokenizer or _standard_tokenizer(inner)
        check_end(inner, tokenizer, name)
    elif isinstance(model, nn.Module):
        if pretrained is not None:
            raise ValueError("pretrained must be None for a model object; it needs a model name")
        if image_size is not None:
            raise ValueError(
                f"image_size must be None for a model object, got {image_size}; create the model "
                "with that size, or pass its name"
            )
        _require_clip(model)
        inner, name = _full_precision(copy.deepcopy(model)), type(model).__name__
        tokenizer = tokenizer or _standard_tokenizer(inner)
    elif isinstance(model, str):
        size = None if image_size is None else check_image_size(image_size)
        inner, found = _by_name(model, pretrained, cache_dir, size)
        _require_clip(inner)
        reload = {"model": model, "pretrained": pretrained} if tokenizer is None else None
        tokenizer = tokenizer or found
        name = model if pretrained is None else f"{model}:{pretrained}"
        if size is not None:
            _check_patches(inner, model, size)
            reload = None if reload is None else {**reload, "image_size": image_size}
            name += f" at {size if isinstance(size, int) else 'x'.join(map(str, size))}"
    else:
        raise TypeError(
            f"model must be a name or an open_clip model, got {type(model).__name__}: "
            f"{shown(model)}"
        )
    if image_weights is not None:
        load_image_weights(inner, image_weights, resize=image_size is not None)
        named = isinstance(image_weights, (str, Path))
        reload = dict(reload, image_weights=str(image_weights)) if reload and named else None
    own_mean = _normalization(inner, "mean", mean, open_clip.OPENAI_DATASET_MEAN)
    own_std = _normalization(inner, "std", std, open_clip.OPENAI_DATASET_STD)
    if mean is not None or std is not None:
        numbers = {k: v for k, v in {"mean": mean, "std": std}.items() if v is not None}
        reload = None if reload is None else {**reload, **numbers}
    clip = FrozenCLIP(inner, tokenizer, own_mean, own_std, name=name, source=reload)
    clip.to(next(inner.parameters()).device if device is None else device)
    # compares the towers with the model's own forward pass, so that a difference is logged now
    clip.why_no_text_prompts()
    clip.why_no_visual_prompts()
    return clip


def _full_precision(model: nn.Module) -> nn.Module:
    """Convert the model to float32 if any parameter is float16 or bfloat16."""
    low = any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters())
    return model.float() if low else model


def _check_patches(model: nn.Module, name: str, size: int | tuple[int, int]) -> None:
    """Raise if the image encoder has another size, or would leave out pixels at the borders."""
    visual: Any = model.visual
    sides, own = ((s, s) if isinstance(s, int) else tuple(s) for s in (size, visual.image_size))
    if sides != own:
        raise ValueError(f"image_size must be that of {name}, {visual.image_size}, got {size}")
    patch = getattr(visual, "patch_size", None)
    patch = (patch, patch) if isinstance(patch, int) else patch
    if isinstance(patch, tuple) and any(a % b for a, b in zip(sides, patch, strict=True)):
        raise ValueError(
            f"image_size must be a multiple of {name}'s patch size, {patch[0]}, got {size}"
        )


def _by_name(
    name: str, pretrained: str | None, cache_dir: str | None, size: int | tuple[int, int] | None
) -> tuple[nn.Module, Tokenizer]:
    if name in bundled.names():
        if pretrained is not None:
            raise ValueError(f"pretrained must be None: {name} is bundled with its weights")
        options = {} if size is None else {"image_size": size}
        return bundled.load(name, **options), _simple_tokenizer()
    if name.startswith(_SCHEMES):
        if pretrained is not None:
            raise ValueError(f"pretrained must be None: {name} includes its own weights")
        if name.startswith("local-dir:"):
            _check_folder(name.removeprefix("local-dir:"))
    else:
        known = open_clip.list_models()
        plain = name.replace("/", "-")  # the only spelling that get_tokenizer accepts
        if plain not in known:
            raise unknown("model", name, [*bundled.names(), *known])
        name = plain
        _check_pretrained(name, pretrained)
    try:
        model = open_clip.create_model(
            name,
            pretrained=pretrained,
            precision="fp32",
            device="cpu",
            force_quick_gelu=quick_gelu(name, pretrained),
            force_image_size=size,
            cache_dir=cache_dir,
            require_pretrained=True,
            weights_only=True,
        )
        return model, open_clip.get_tokenizer(name, cache_dir=cache_dir)
    except (UnpicklingError, SafetensorError, EOFError) as error:
        raise ValueError(
            f"pretrained: the checkpoint for {name} ({pretrained or 'its default'}) is damaged "
            f"or contains pickled objects, which are never loaded; download it again, or save only "
            f"its state_dict: {first_line(error)}"
        ) from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"model: could not load {name}: {error}") from error
    except Exception as error:  # the unpickler can raise any error on a foreign file
        if pretrained and Path(pretrained).is_file():
            raise ValueError(
                f"pretrained: the checkpoint {pretrained} is damaged or does not fit {name}"
                f"{'' if size is None else f' with image_size={size}'}: {first_line(error)}"
            ) from error
        if name.startswith("local-dir:"):
            kind = type(error).__name__
            raise ValueError(
                f"model: {name} is not a complete open_clip model: {str(error)[:300] or kind}; "
                "write the folder again"
            ) from error
        if not isinstance(error, (RuntimeError, OSError, ValueError)):
            raise
        raise RuntimeError(
            f"model: could not load {name} with pretrained={pretrained!r}: {first_line(error)}; "
            "without network access, pass the path of a checkpoint as pretrained"
            + _other_name(name, pretrained)
        ) from error


_CONFIG = {"embed_dim": int, "text_cfg": Mapping, "vision_cfg": Mapping}


def _check_folder(folder: str) -> None:
    """Check what open_clip reads from a model folder without checking it itself."""
    path = check_path(folder, "model")
    if not path.is_dir():
        raise FileNotFoundError(f"model: local-dir:{path} does not exist")
    file = path / "open_clip_config.json"
    if not file.is_file():
        raise FileNotFoundError(f"model: {path} has no open_clip_config.json")
    try:
        config = read_json(file)
    except ValueError as error:
        raise ValueError(f"model: {error}") from None
    model = config.get("model_cfg")
    for key, kind in _CONFIG.items():
        if not isinstance(model, Mapping) or not isinstance(model.get(key), kind):
            what = "missing" if not isinstance(model, Mapping) or key not in model else "invalid"
            raise ValueError(f"model: {file} is incomplete: model_cfg.{key} is {what}")
    for weights in sorted(path.iterdir()):
        if weights.suffix in (".bin", ".pt", ".pth"):
            check_sizes(weights, "model")


def _other_name(name: str, pretrained: str | None) -> str:
    """Suggest the QuickGELU model name, since a checkpoint file does not record the activation."""
    if not quick_gelu(name, pretrained) or name.endswith("-quickgelu"):
        return ""
    return f" and {name}-quickgelu as model, because these weights were trained with QuickGELU"


def quick_gelu(name: str, pretrained: str | None) -> bool:
    """Return whether the weights need QuickGELU; on a mismatch open_clip only warns."""
    if pretrained is None or name.startswith(_SCHEMES):
        return False
    tag = open_clip.get_pretrained_cfg(name.replace("/", "-"), pretrained)
    return bool(tag.get("quick_gelu", False))


def _check_pretrained(name: str, pretrained: str | None) -> None:
    tags = open_clip.list_pretrained_tags_by_model(name.replace("/", "-"))
    if pretrained is None:
        raise ValueError(
            f"pretrained is required: {name} needs a weight tag ({', '.join(tags[:4]) or 'none'}) "
            "or the path of a checkpoint; for random weights, pass a model object"
        )
    looks_like_path = "/" in pretrained or Path(pretrained).suffix in (
        ".pt",
        ".pth",
        ".safetensors",
    )
    if pretrained in tags:
        return
    if Path(pretrained).is_file():
        if Path(pretrained).suffix != ".safetensors":
            check_sizes(Path(pretrained), "pretrained")
        return
    if Path(pretrained).is_dir():
        raise FileNotFoundError(f"pretrained: {pretrained} is a folder; pass a file in it")
    if looks_like_path:
        raise FileNotFoundError(f"pretrained: the checkpoint {pretrained} does not exist")
    raise unknown(f"weight tag for {name}", pretrained, tags)


def _require_clip(model: nn.Module) -> None:
    missing = [
        part
        for part in ("visual", "encode_image", "encode_text", "logit_scale", "context_length")
        if not hasattr(model, part)
    ]
    if missing:
        theirs = type(model).__module__.startswith("transformers.")
        raise TypeError(
            f"model must be an open_clip CLIP or CustomTextCLIP, but {type(model).__name__} has no "
            f"{', '.join(missing)}{'; pass source=' + repr('transformers') if theirs else ''}"
        )


def _simple_tokenizer(context_length: int = 77) -> Any:
    """Return open_clip's standard tokenizer; all of them share the tables, which take 22 MB."""
    tokenizer = copy.copy(_read_tokenizer())
    tokenizer.context_length = context_length
    return tokenizer


@cache
def _read_tokenizer() -> Any:
    return open_clip.SimpleTokenizer()


def _standard_tokenizer(model: nn.Module) -> Tokenizer:
    standard = _simple_tokenizer(getattr(model, "context_length", 77))
    if getattr(model, "vocab_size", None) != standard.vocab_size:
        raise ValueError(
            f"tokenizer is required: the model has {getattr(model, 'vocab_size', '?')} tokens, but "
            f"open_clip's standard tokenizer has {standard.vocab_size}; "
            "pass open_clip.get_tokenizer(name)"
        )
    return standard


def _normalization(
    model: Any, key: str, given: Sequence[float] | None, default: Sequence[float]
) -> Sequence[float]:
    """Return the mean or std that was given, else the model's own, else the default."""
    if given is not None:
        return given
    own: Sequence[float] = getattr(model.visual, f"image_{key}", None) or default
    channels = input_channels(model) or len(own)
    if len(own) != channels:
        raise ValueError(
            f"{key} is required: the image encoder takes {channels}-channel images, but the "
            f"default {key} has {len(own)} values; pass mean and std with one value per channel"
        )
    return own
