"""Read the files of a transformers ``CLIPModel``, from a folder or from the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._utils.files import read_json
from .._utils.hub import REPOSITORY, explained
from .._utils.unpickling import check_sizes, first_line

_SETTINGS = ("*.json", "*.txt")  # also those of the tokenizer
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")  # the first that a repository has
_INTERPOLATION = {2: "bilinear", 3: "bicubic"}  # of PIL


def require_transformers(what: str = "source='transformers'") -> Any:
    """Import and return transformers; ``what`` needs it.

    Raises:
        ImportError: transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            f"{what} needs transformers ({error}): pip install 'fastprompt[hf]'"
        ) from error
    return transformers


def read_model(name: str, cache_dir: str | None = None) -> tuple[Path, Any]:
    """Return the folder of a model, and the ``CLIPModel``.

    The files of a repository ``"org/name"`` are downloaded first, unless the cache has them, and
    its weights only if it is a CLIP.

    Raises:
        FileNotFoundError: there is no such folder or repository, or no configuration in it.
        PermissionError: the repository is private or gated, or does not exist.
        ConnectionError: the Hub cannot be reached, and the cache does not have the repository.
        ValueError: the files are damaged or incomplete, or of another kind of model.
    """
    transformers = require_transformers()
    folder = _fetch(name, cache_dir)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"model: {name} has no config.json; it is no model of transformers")
    try:
        config, _ = transformers.CLIPConfig.get_config_dict(folder)
    except Exception as error:  # of the file's JSON
        raise _damaged(name, error) from error
    kind = config.get("model_type")
    if kind != "clip":
        raise ValueError(
            f"model: {name} is a transformers model of type {kind!r}; only 'clip' is converted, "
            "other models are loaded by their open_clip names"
        )
    for pattern in _WEIGHTS:
        folder = _fetch(name, cache_dir, pattern)
        if any(folder.glob(pattern)):
            break
    for weights in sorted(folder.glob("*.bin")):
        check_sizes(weights, "model")
    try:
        model, info = transformers.CLIPModel.from_pretrained(
            folder, weights_only=True, output_loading_info=True
        )
    except Exception as error:  # a foreign file can cause any error
        raise _damaged(name, error) from error
    if lacking := sorted(map(str, info["missing_keys"])):
        raise ValueError(
            f"model: the weights of {name} are incomplete: {len(lacking)} tensors are missing, for "
            f"example {lacking[0]}; restore the files"
        )
    return folder, model


def _fetch(name: str, cache_dir: str | None, *patterns: str) -> Path:
    """Return a folder, or that of a repository in the cache, with the files of these patterns."""
    if Path(name).is_dir():
        return Path(name)
    if not REPOSITORY.fullmatch(name):
        raise FileNotFoundError(
            f"model: the folder {name} does not exist; pass a folder of transformers, or org/name"
        )
    import huggingface_hub

    with explained(name):
        return Path(
            huggingface_hub.snapshot_download(
                name, cache_dir=cache_dir, allow_patterns=[*_SETTINGS, *patterns]
            )
        )


def _damaged(name: str, error: Exception) -> ValueError:
    why = first_line(error)
    return ValueError(f"model: {name} is damaged or incomplete: {why}; restore its files")


def read_tokenizer(folder: Path) -> Any:
    """Return the tokenizer beside the weights; None if there is none."""
    if not any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        return None
    try:
        return require_transformers().AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # a foreign file can cause any error
        raise ValueError(
            f"tokenizer: that of {folder} is not readable ({first_line(error)}); pass a tokenizer"
        ) from error


def preprocessing(folder: Path) -> dict[str, Any]:
    """Return attributes of open_clip's image encoders from the image processor's file, if any."""
    try:
        file, found = _image_processor(folder)
    except ValueError as error:
        raise ValueError(f"model: {error}") from None
    if not found:
        return {}
    _check_preprocessing(file, found)
    out: dict[str, Any] = {
        key: tuple(found[key]) for key in ("image_mean", "image_std") if found.get(key)
    }
    size = found.get("size")
    squashed = isinstance(size, Mapping) and "height" in size and not found.get("do_center_crop")
    out["preprocess_cfg"] = {
        "resize_mode": "squash" if squashed else "shortest",
        "interpolation": _INTERPOLATION[found.get("resample", 3)],
    }
    return out


def _image_processor(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the file, and the settings; version 5 of transformers may nest them in another."""
    file = folder / "processor_config.json"
    if file.is_file() and "image_processor" in (nested := read_json(file)):
        found = nested["image_processor"]
        if not isinstance(found, dict):
            raise ValueError(f"{file} has an image_processor that is no JSON object; restore it")
        return file, found
    file = folder / "preprocessor_config.json"
    return file, read_json(file) if file.is_file() else {}


def _check_preprocessing(file: Path, found: Mapping[str, Any]) -> None:
    """Raise ValueError for settings that open_clip's preprocessing does not have."""
    for key in ("do_resize", "do_rescale", "do_normalize"):
        if not found.get(key, True):
            raise ValueError(f"model: {file} has {key}=false, which is not supported; remove it")
    if (resample := found.get("resample", 3)) not in _INTERPOLATION:
        raise ValueError(
            f"model: {file} has resample={resample!r}; only 2 (bilinear) and 3 (bicubic) are "
            "supported"
        )
    edges = found.get("size"), found.get("crop_size")
    sides = [
        edge.get("shortest_edge", edge.get("height")) if isinstance(edge, Mapping) else edge
        for edge in edges
    ]
    if found.get("do_center_crop", True) and None not in sides and sides[0] != sides[1]:
        raise ValueError(
            f"model: {file} has size {edges[0]} and crop_size {edges[1]}, which must be equal: "
            "pictures are resized to the side that is cropped"
        )
