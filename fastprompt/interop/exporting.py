"""`export`: a tuned classifier as an ONNX file, a torch program or class features."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save
from torch import Tensor

from .._utils.checks import check_choice, check_flag, check_path
from .._utils.files import write_bytes
from .._utils.versions import versions
from ..clip.frozen import FrozenCLIP
from ..model.classifier import CLIPClassifier
from ..tuning.saving import SavedTuner
from .export_graph import trace
from .export_onnx import DEFAULT_OPSET, check_opset, to_int8, to_onnx

Format = Literal["onnx", "torch", "safetensors"]
SUFFIXES: dict[str, str] = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors"}
KEY = "fastprompt"  # of the metadata in each format, a JSON object


def export(
    model: Any,
    path: str | Path,
    *,
    format: Format | None = None,
    opset: int = DEFAULT_OPSET,
    int8: bool = False,
) -> Path:
    """Write a classifier to a file that needs no fastprompt.

    ``"onnx"`` and ``"torch"`` (a program of `torch.export`) hold the image encoder with its
    prompts, token refiners and router, and the class features: float32 pixels ``[B, 3, H, W]`` in
    [0, 1], normalized inside, to logits ``[B, classes]`` for any B, up to rounding those of the
    classifier in float32. ``"safetensors"`` holds only the class features ``[classes, D]``,
    L2-normalized, and ``logit_scale``: logits are
    ``logit_scale * normalize(image_features) @ class_features.T``.

    The metadata of each file has the key ``fastprompt``, a JSON object: how pictures become pixels,
    class names, method, name and fingerprint of the model, fastprompt's version.

    Args:
        model: a tuner, or a `CLIPClassifier`. It is not changed.
        path: the file to write, which must not exist: ``.onnx``, ``.pt2`` or ``.safetensors``.
        format: ``"onnx"`` (extra ``export``), ``"torch"`` or ``"safetensors"``. Default: that of
            the path.
        opset: version of the ONNX operators, from 18.
        int8: store the weights of an ONNX file's matrix products in 8 bits (dynamic quantization by
            ONNX Runtime, which must be installed). The logits differ: compare the accuracy.

    Returns:
        The path.

    Raises:
        TypeError: ``model`` is neither a tuner nor a classifier.
        ValueError: the format is unknown or does not fit the path, the opset is too old or too new,
            the image encoder cannot be exported, or class features alone do not give the logits.
        ImportError: a package is missing; the message names the extra.
        FileExistsError: ``path`` exists.
    """
    path, kind = check_target(path, format, int8=int8)
    if kind == "onnx":
        write_bytes(path, onnx_files(model, opset, int8=int8)[-1])
        return path
    classifier, method = _classifier_of(model)
    about = describe(classifier, method)
    if kind == "safetensors":
        _write_features(classifier, path, about)
    else:
        buffer, extra = io.BytesIO(), {KEY: json.dumps(about)}
        torch.export.save(trace(classifier), buffer, extra_files=extra)
        write_bytes(path, buffer.getvalue())
    return path


def onnx_files(model: Any, opset: int = DEFAULT_OPSET, *, int8: bool = False) -> list[bytes]:
    """Return the ONNX file that `export` writes in float32 and, with ``int8``, that in int8.

    Raises:
        TypeError, ValueError, ImportError: see `export`.
    """
    check_opset(opset)
    classifier, method = _classifier_of(model)
    about = describe(classifier, method)
    files = [to_onnx(trace(classifier), opset, {KEY: json.dumps(about)})]
    if int8:
        quantized = {**about, "quantization": "weights of matrix products in int8, dynamic"}
        files.append(to_int8(files[0], {KEY: json.dumps(quantized)}))
    return files


def check_target(
    path: str | Path, format: str | None = None, *, int8: bool = False
) -> tuple[Path, str]:
    """Return the path and the format; raise the errors of `export` about them."""
    path = check_path(path, "path")
    check_flag(int8, "int8")
    known = ", ".join(f"{suffix} ({name})" for name, suffix in SUFFIXES.items())
    if format is None:
        format = next((name for name, end in SUFFIXES.items() if end == path.suffix), None)
        if format is None:
            raise ValueError(f"path must end in one of {known}, got {path.name!r}")
    check_choice(format, "format", get_args(Format))
    if path.suffix != SUFFIXES[format]:
        raise ValueError(
            f"path must end in {SUFFIXES[format]} with format={format!r}, got {path.name!r}"
        )
    if int8 and format != "onnx":
        raise ValueError(f"int8 must be False with format={format!r}; only 'onnx' has it")
    if path.exists():
        raise FileExistsError(f"path: {path} exists; remove it or choose another name")
    return path, format


def describe(classifier: CLIPClassifier, method: str | None) -> dict[str, Any]:
    """Return the metadata of an exported classifier."""
    clip = classifier.clip
    channels, height, width = clip.pixel_shape
    return {
        "fastprompt": versions()["fastprompt"],
        "method": method,
        "classnames": classifier.classnames,
        "model": {"name": clip.name, "source": clip.source, "fingerprint": clip.fingerprint},
        "input": {
            "name": "pixels",
            "shape": ["batch", channels, height, width],
            "dtype": "float32",
            "range": [0, 1],
            "normalization": "inside the model: do not normalize",
        },
        "output": {"name": "logits", "shape": ["batch", len(classifier.classnames)]},
        "preprocess": preprocess_of(clip),
    }


def preprocess_of(clip: FrozenCLIP) -> dict[str, Any]:
    """Return how a picture becomes pixels in [0, 1], in open_clip's terms."""
    usual = {"resize_mode": "shortest", "interpolation": "bicubic", "fill_color": 0}
    whole = {**usual, **clip.preprocess}
    crop = {"shortest": "center", "longest": "center, padded with fill_color", "squash": None}
    return {
        "mode": "RGB" if clip.channels == 3 else f"{clip.channels} channels",
        "size": list(clip.pixel_shape[1:]),
        **whole,
        "crop": crop.get(whole["resize_mode"]),
        "scale": 1 / 255,
        "mean": clip.mean.flatten().tolist(),
        "std": clip.std.flatten().tolist(),
    }


def _classifier_of(model: Any) -> tuple[CLIPClassifier, str | None]:
    if isinstance(model, SavedTuner):
        tuner: Any = model
        return tuner.classifier, tuner.method
    if not isinstance(model, CLIPClassifier):
        raise TypeError(f"model must be a tuner or a CLIPClassifier, got {type(model).__name__}")
    return model, None


def check_text_alone(classifier: CLIPClassifier, what: str) -> None:
    """Raise ValueError if frozen image features and class features do not give the logits."""
    parts = {"visual prompts or token refiners": classifier.has_visual_prompts}
    parts["a router, so that class features differ by image"] = classifier.head is not None
    for part, present in parts.items():
        if present:
            raise ValueError(
                f"{what}: this classifier has {part}; export it whole, with format='onnx' or "
                "format='torch'"
            )


def _write_features(classifier: CLIPClassifier, path: Path, about: dict[str, Any]) -> None:
    check_text_alone(classifier, "format='safetensors' is for prompts that are text alone")
    clip = classifier.clip
    tensors: dict[str, Tensor] = {
        "class_features": classifier.text_features.float(),
        "logit_scale": clip.logit_scale.float(),
    }
    if clip.logit_bias is not None:
        tensors["logit_bias"] = clip.logit_bias.float()
    # each tensor once, contiguous: safetensors rejects views
    whole = {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}
    write_bytes(path, save(whole, metadata={KEY: json.dumps(about)}))
