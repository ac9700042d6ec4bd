"""`load_data`: one door to the built-in sets, folders of images and torchvision's data sets."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch

from .._utils.checks import check_count
from .._utils.names import unknown
from ..clip.frozen import TEMPLATES
from .builtin import WORLDS, draw_split
from .dataset import ImageDataset, ImageTensors
from .few_shot import Chosen, Classes, class_range, sample
from .folder import folder_splits
from .splits import Split
from .torchvision_sets import TORCHVISION, torchvision_splits


@dataclass
class Data:
    """A data set to tune for; each split is drawn or read when it is first asked for.

    Attributes:
        name: as given to `load_data`.
        classnames: the class names, after the choice of classes.
        templates: zero-shot templates that suit the names.
        image_size: height and width of the images.
        arguments: what `load_data` was called with, to load the same again.
    """

    name: str
    classnames: list[str]
    templates: tuple[str, ...]
    image_size: int
    arguments: dict[str, Any]
    _split: Callable[[str], ImageDataset] = field(repr=False)

    @cached_property
    def train(self) -> ImageDataset:
        """The training images: ``shots`` a class."""
        return self._split("train")

    @cached_property
    def val(self) -> ImageDataset:
        """The validation images: at most four a class with few shots, as in CoOp."""
        return self._split("val")

    @cached_property
    def test(self) -> ImageDataset:
        """All test images of the chosen classes."""
        return self._split("test")


def load_data(
    name: str | Path,
    *,
    shots: int | Literal["all"] = "all",
    seed: int = 0,
    classes: Classes = "all",
    image_size: int = 48,
    root: str | Path = "data",
    download: bool = False,
) -> Data:
    """Load a data set for tuning.

    Args:
        name: ``"shapes"``, ``"patterns"``, ``"counts"``, the shifted variants ``"shapes-outline"``,
            ``"shapes-recolored"``, ``"shapes-crowded"``; a folder with one subfolder of images a
            class (or ``train``, ``val``, ``test`` folders of such); or the name of a torchvision
            data set.
        shots: training images a class (1, 2, 4, 8, 16, ...), or ``"all"``.
        seed: of the few-shot draw. The splits don't depend on it.
        classes: ``"all"``, or ``"base"`` (first half) or ``"new"`` (second half).
        image_size: pixels a side; photographs are resized and cut to the middle square.
        root: where torchvision keeps its data.
        download: let torchvision download.

    Raises:
        ValueError: an unknown name (the nearest are offered), shots below 1, an empty folder.
        FileNotFoundError: data that is not there.
    """
    if shots != "all":
        check_count(shots, "shots")
    check_count(image_size, "image_size", least=16)
    text = str(name)
    whole: Callable[[str], Split]
    if text in WORLDS:
        world = WORLDS[text]
        names, templates = list(world.classnames), world.templates
        whole = partial(_builtin, text, image_size)
    elif text in TORCHVISION:  # before folders: torchvision's own folder may have this name
        names, whole = torchvision_splits(text, image_size, Path(root), download)
        templates = TEMPLATES
    elif Path(name).is_dir():
        names, whole = folder_splits(Path(name), image_size)
        templates = TEMPLATES
    elif isinstance(name, Path) or "/" in text or text.startswith("."):
        raise FileNotFoundError(f"data: there is no folder {text}")
    else:
        raise unknown("data set", text, [*WORLDS, *TORCHVISION])
    chosen = class_range(len(names), classes)
    limits = {
        "train": None if shots == "all" else shots,
        "val": None if shots == "all" else min(shots, 4),
        "test": None,
    }

    kept = [names[i] for i in chosen]

    def read(split: str) -> ImageDataset:
        data, labels = whole(split)
        rows = sample(labels, chosen, limits[split], seed)
        tag = f"{classes}/shots={limits[split]}/seed={seed}"
        if not isinstance(data, ImageTensors):
            return Chosen(data, rows, chosen.start, tag, kept)
        index = torch.tensor(rows, dtype=torch.int64)
        labels = data.labels[index] - chosen.start
        return ImageTensors(data.images[index], labels, f"{data.fingerprint}/{tag}", kept)

    arguments = {
        "name": text,
        "shots": shots,
        "seed": seed,
        "classes": classes,
        "image_size": image_size,
        "root": str(root),
    }
    return Data(text, kept, tuple(templates), image_size, arguments, read)


def _builtin(name: str, image_size: int, split: str) -> Split:
    data = draw_split(name, split, image_size)
    return data, data.labels
