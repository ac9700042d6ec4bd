"""Where the data set that `load_data` is asked for comes from."""

from collections.abc import Mapping
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from .._utils import plugins
from .._utils.checks import check_path
from .._utils.names import unknown
from ..clip.frozen import TEMPLATES
from . import corruptions, hf_sets, photos
from .builtin import WORLDS, draw_split
from .coop import canonical, find_coop
from .coop_sets import PREFIX, SETS
from .folder import ImageFolder
from .manifest import Manifest, is_manifest
from .shards import exists, has_shards, is_shards, shards_source
from .splits import Form, Source, Split
from .torchvision_sets import TORCHVISION, torchvision_source

BUILTIN = (*WORLDS, photos.NAME, *corruptions.NAMES)
_PREFIXES = (PREFIX.removesuffix(":"), hf_sets.PREFIX.removesuffix(":"))
ROOT = Path("data")  # of CoOp's and torchvision's data sets


def is_loaded(name: object) -> bool:
    """Return whether ``name`` is data that `datasets` has loaded, not the name of a data set."""
    return hf_sets.is_loaded(name)


def title_of(name: Any) -> str:
    """Check what `load_data` is asked for, and return its name; of loaded data, its type."""
    if is_loaded(name):
        return type(name).__name__
    check_path(name, "data")
    text = str(name)  # Path would change "./folder"
    return f"{PREFIX}{canonical(text)}" if text.startswith(PREFIX) else text


def find_source(
    name: Any, root: Path | None, download: bool, unseen_by: str | None = None
) -> Source:
    """Return a data set's class names, templates, and a reader of its splits.

    Raises:
        ValueError: it is not known which pictures of the data set the model ``unseen_by`` has seen.
    """
    only = None if unseen_by is None else photos.unseen_of_caltech(unseen_by)
    if only is not None and title_of(name) not in (photos.NAME, f"{PREFIX}Caltech101"):
        raise ValueError(
            f"unseen_by is for {photos.NAME} and {PREFIX}Caltech101, got {title_of(name)}, of "
            "which it is not known what the model has seen; leave it out"
        )
    if is_loaded(name):
        return hf_sets.loaded_source(name, TEMPLATES)
    text, place = str(name), root or ROOT
    if text in WORLDS:
        world = WORLDS[text]
        return Source(list(world.classnames), partial(_builtin, text), tuple(world.templates))
    if text == photos.NAME:
        return photos.photos_source()
    if text in corruptions.NAMES:
        return corruptions.corrupted_source(text)
    if text.startswith(PREFIX):
        return find_coop(text, place, only).source
    if text.startswith(hf_sets.PREFIX):
        return hf_sets.named_source(text, TEMPLATES)
    if found := _plugin(text):
        return _from_plugin(found, text, root, download)
    if text in TORCHVISION:  # checked before folders: a folder may have the same name
        return torchvision_source(text, place, download)
    if Path(name).is_dir():
        if has_shards(Path(name)):
            return shards_source(text, TEMPLATES)
        folder = ImageFolder.find(Path(name))
        return Source(folder.classes, folder.read, TEMPLATES)
    if is_manifest(text):
        return Manifest(Path(name), root).source(TEMPLATES)
    if is_shards(text):
        return shards_source(text, TEMPLATES)
    if isinstance(name, Path) or "/" in text or text.startswith("."):
        raise FileNotFoundError(f"data: the folder {text} does not exist")
    coop = [f"{PREFIX}{own}" for own in SETS]
    others = plugins.plugins(plugins.DATA, _PREFIXES)
    prefix, colon, _ = text.partition(":")
    if colon and others:
        raise unknown("prefix of data", f"{prefix}:", [f"{p}:" for p in (*_PREFIXES, *others)])
    raise unknown("data set or image folder", text, [*BUILTIN, *TORCHVISION, *coop])


def _plugin(text: str) -> EntryPoint | None:
    """Return the entry point of another package for the prefix of ``PREFIX:NAME``, if any."""
    prefix, colon, _ = text.partition(":")
    return plugins.plugins(plugins.DATA, _PREFIXES).get(prefix) if colon else None


def _from_plugin(entry: EntryPoint, text: str, root: Path | None, download: bool) -> Source:
    """Return the data set that another package gives for ``PREFIX:NAME``.

    Its function is called with the name, ``root`` and ``download``, and returns a `Source`, or
    anything that `load_data` takes, such as the path of a folder.
    """
    function = plugins.load(entry)
    found = function(text.partition(":")[2], root=root, download=download)
    if isinstance(found, Source):
        return found
    if isinstance(found, Path) or is_loaded(found):
        return find_source(found, root, download)
    raise RuntimeError(
        f"{plugins.titled(entry)} must return a Path, a data set of the library datasets, or a "
        f"Source, got {type(found).__name__}"
    )


def moved(given: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """Return ``given`` with relative paths in ``name`` and ``root`` that exist in ``directory``."""
    out, name = dict(given), given.get("name")
    if name is not None and name.startswith(hf_sets.PREFIX):
        own = name.removeprefix(hf_sets.PREFIX)
        out["name"] = f"{hf_sets.PREFIX}{_below(own, directory, 'data')}"
    elif name is not None and name not in TORCHVISION and not name.startswith(PREFIX):
        out["name"] = _below(name, directory, "data")
    if given.get("root") is not None:
        out["root"] = _below(given["root"], directory, "root")
    return out


def _below(recorded: Any, directory: Path, name: str) -> str:
    path = directory / check_path(recorded, name)
    found = exists(str(recorded), directory) if is_shards(str(recorded)) else path.exists()
    there = found and path.resolve() != Path(recorded).resolve()
    return str(path) if there else recorded


def _builtin(name: str, split: str, form: Form) -> Split:
    data = draw_split(name, split, form)
    return data, data.labels
