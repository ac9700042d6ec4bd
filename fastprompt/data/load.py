"""`load_data`: load a built-in data set, an image folder or a torchvision data set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch

from .._utils.checks import check_count, check_flag, check_path, check_seed, shown
from .._utils.names import unknown
from ..clip.frozen import TEMPLATES
from .builtin import WORLDS, draw_split
from .dataset import ImageDataset, ImageTensors
from .few_shot import Chosen, Classes, class_range, sample
from .folder import folder_splits
from .splits import Form, Size, Split
from .torchvision_sets import TORCHVISION, torchvision_splits

_LARGEST = 4096  # side of an image in pixels


@dataclass
class Data:
    """A data set for tuning; each split is rendered or opened on first access.

    Attributes:
        name: the name or path passed to `load_data`.
        classnames: the names of the selected classes.
        templates: zero-shot templates for the class names.
        image_size: side of square images in pixels, or height and width.
        arguments: the arguments of `load_data`, for loading the same data again.
    """

    name: str
    classnames: list[str]
    templates: tuple[str, ...]
    image_size: Size
    arguments: dict[str, Any]
    _split: Callable[[str], ImageDataset] = field(repr=False)

    @cached_property
    def train(self) -> ImageDataset:
        """The training images, ``shots`` per class."""
        return self._split("train")

    @cached_property
    def val(self) -> ImageDataset:
        """The validation images: ``min(shots, 4)`` per class as in CoOp; all if shots is "all"."""
        return self._split("val")

    @cached_property
    def test(self) -> ImageDataset:
        """All test images of the selected classes."""
        return self._split("test")


def load_data(
    name: str | Path,
    *,
    shots: int | Literal["all"] = "all",
    seed: int = 0,
    classes: Classes = "all",
    image_size: Size = 48,
    channels: int = 3,
    root: str | Path = "data",
    download: bool = False,
) -> Data:
    """Load a data set for tuning.

    Args:
        name: ``"shapes"``, ``"patterns"``, ``"counts"``, the shifted variants ``"shapes-outline"``,
            ``"shapes-recolored"``, ``"shapes-crowded"``; a folder with one subfolder of images per
            class (or ``train``, ``val``, ``test`` folders of these); or the name of a torchvision
            data set.
        shots: training images per class (1, 2, 4, 8, 16, ...), or ``"all"``.
        seed: the seed of few-shot sampling. The splits do not depend on it.
        classes: ``"all"``, ``"base"`` (first half) or ``"new"`` (second half).
        image_size: side of square images in pixels, or ``(height, width)``, each at least 16;
            photographs are resized and center-cropped.
        channels: 3 for RGB images, 1 for gray ones.
        root: the root directory of torchvision's data sets.
        download: whether torchvision may download the data set.

    Raises:
        ValueError: the name is unknown (the message suggests similar ones), an argument is out of
            range, or a folder has no images.
        FileNotFoundError: the data does not exist.
    """
    check_path(name, "data")
    check_path(root, "root")
    check_flag(download, "download")
    check_seed(seed)
    if shots != "all":
        check_count(shots, "shots")
    form = _form(image_size, channels)
    text = str(name)
    whole: Callable[[str], Split]
    if text in WORLDS:
        world = WORLDS[text]
        names, templates = list(world.classnames), world.templates
        whole = partial(_builtin, text, form)
    elif text in TORCHVISION:  # checked before folders: a folder may have the same name
        names, whole = torchvision_splits(text, form, Path(root), download)
        templates = TEMPLATES
    elif Path(name).is_dir():
        names, whole = folder_splits(Path(name), form)
        templates = TEMPLATES
    elif isinstance(name, Path) or "/" in text or text.startswith("."):
        raise FileNotFoundError(f"data: the folder {text} does not exist")
    else:
        raise unknown("data set or image folder", text, [*WORLDS, *TORCHVISION])
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
        "image_size": form.size,
        "channels": channels,
        "root": str(root),
    }
    return Data(text, kept, tuple(templates), form.size, arguments, read)


def _form(image_size: Any, channels: int) -> Form:
    """Check the form of the images; a square height and width is one number."""
    if isinstance(image_size, Sequence):
        if isinstance(image_size, str) or len(image_size) != 2:
            raise ValueError(
                f"image_size must be a number or (height, width), got {shown(image_size)}"
            )
        height, width = (
            check_count(side, "image_size", least=16, most=_LARGEST) for side in image_size
        )
        size: Size = height if height == width else (height, width)
    else:
        size = check_count(image_size, "image_size", least=16, most=_LARGEST)
    if isinstance(channels, bool) or channels not in (1, 3):
        raise ValueError(f"channels must be 1 (gray) or 3 (RGB), got {shown(channels)}")
    return Form(size, channels)


def _builtin(name: str, form: Form, split: str) -> Split:
    data = draw_split(name, split, form)
    return data, data.labels
