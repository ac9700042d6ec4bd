"""What a saved folder says of a run: its settings without this machine's paths, and its model."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePath, PureWindowsPath
from typing import Any

from torch import Tensor

from .._utils.hashing import digest, digest_texts
from ..clip.frozen import FrozenCLIP
from ..clip.parts import architecture
from ..evaluation import Evaluation

_KEPT = ("method", "config", "classnames", "clip", "data", "imported", "layout", "versions")
_LOCAL = ("root", "directory")  # arguments of `load_data` that hold paths
# "hf:org/name", unlike "hf:./folder" and "hf:/folder", is a name; so are those of plugins
_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".csv", ".jsonl", ".tar")
_NAMED = re.compile(r"[a-z][\w-]+:[\w-][\w.-]*(/[\w.-]+)?")


def shareable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what others need of a run's ``config.json``, without paths of this machine.

    A model or data set that was read from a path cannot be loaded again elsewhere: it keeps its
    name, and has no source.
    """
    out = {key: config[key] for key in _KEPT if config.get(key) is not None}
    if origin := out["config"].get("init_from"):
        out["config"] = {**out["config"], "init_from": _last(origin)}
    if out["config"].get("bank_dir"):
        out["config"] = {**out["config"], "bank_dir": None}
    source = out["clip"]["source"]
    if source is not None and _is_local(source):
        out["clip"] = {**out["clip"], "source": None}
    if data := out.get("data"):
        out["data"] = {key: value for key, value in data.items() if key not in _LOCAL}
        if _is_path(name := data.get("name")):
            out["data"] |= {"name": None, "type": _last(name)}
    return out


def shareable_result(result: Evaluation) -> Evaluation:
    """Return a result that names its data set without a path."""
    name = result.data.get("name")
    data = {**result.data, "name": _last(name)} if _is_path(name) else result.data
    return replace(result, data=data)


def parts_of(clip: FrozenCLIP) -> dict[str, str]:
    """Return a hash of each part of a model, by which two models can be told apart."""
    groups: dict[str, dict[str, Tensor]] = {"image encoder": {}, "text encoder": {}}
    groups |= {"logit scale": {}, "normalization": {"mean": clip.mean, "std": clip.std}}
    for name, value in clip.model.state_dict().items():
        if isinstance(value, Tensor):
            text = "logit scale" if name.startswith("logit_") else "text encoder"
            groups["image encoder" if name.startswith("visual.") else text][name] = value
    hashes = {part: digest(tensors) for part, tensors in groups.items()}
    return {"architecture": digest_texts(*architecture(clip.model)), **hashes}


def differing(stored: object, clip: FrozenCLIP) -> str:
    """Say in which parts a model differs from the one whose `parts_of` were stored; may be ""."""
    if not isinstance(stored, Mapping):  # of a run folder, which has only the hash of the whole
        return ""
    own = parts_of(clip)
    other = [part for part in own if stored.get(part) != own[part]]
    return f" (other {', '.join(other)})" if other else ""


def _is_path(value: object) -> bool:
    """Whether a name is a path on this machine, such as that of a folder or a weight file."""
    if not isinstance(value, str) or _NAMED.fullmatch(value):
        return False
    parted = "/" in value or "\\" in value
    return parted or value.startswith((".", "~")) or PurePath(value).suffix in _SUFFIXES


def _is_local(source: Mapping[str, Any]) -> bool:
    """Whether a model was loaded from a file or folder; "ViT-B/32" is a name of open_clip."""
    model = str(source.get("model"))
    if model.startswith(("local-dir:", "/", ".", "~")) or "\\" in model:
        return True
    return source.get("image_weights") is not None or _is_path(source.get("pretrained"))


def _last(path: object) -> str:
    """Return the last component of a path of any system."""
    return PureWindowsPath(str(path).removeprefix("local-dir:")).name
