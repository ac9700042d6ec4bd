"""torchvision data sets."""

import inspect
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import torch
from torchvision import datasets

from .._utils.hashing import digest_texts
from ..clip.frozen import TEMPLATES
from .splits import RESIZED, Form, Source, Split, TorchvisionImages, cut, train_or_val

# the data sets of single images with one label; the others have videos, pairs, boxes or masks
TORCHVISION = (
    *(
        "CIFAR10",
        "CIFAR100",
        "Caltech101",
        "Country211",
        "DTD",
        "EuroSAT",
        "FGVCAircraft",
    ),
    *(
        "FashionMNIST",
        "Flowers102",
        "Food101",
        "GTSRB",
        "ImageNet",
        "Imagenette",
        "KMNIST",
        "MNIST",
    ),
    *("OxfordIIITPet", "QMNIST", "RenderedSST2", "STL10", "SUN397", "StanfordCars"),
)


# the sets that CoOp has too, with other splits, class names or order
_OF_COOP = {
    **{name: name for name in ("Caltech101", "DTD", "EuroSAT", "FGVCAircraft", "Flowers102")},
    **{name: name for name in ("Food101", "ImageNet", "StanfordCars", "SUN397")},
    "OxfordIIITPet": "OxfordPets",
}


def torchvision_source(name: str, root: Path, download: bool) -> Source:
    """Return the source of a torchvision data set; a missing ``val`` is split off ``train``."""
    cls: Any = getattr(datasets, name)
    arguments = inspect.signature(cls.__init__).parameters
    extra = {"download": download} if "download" in arguments else {}

    @cache
    def whole(split_name: str) -> Any:
        option: dict[str, Any] = {}
        if "split" in arguments:
            option = {"split": split_name}
        elif "train" in arguments:
            option = {"train": split_name == "train"}
        return cls(str(root), **option, **extra)

    def exists(split_name: str) -> bool:
        try:
            whole(split_name)
        except ValueError:  # raised by torchvision for an unknown split
            return False
        except (RuntimeError, OSError) as error:
            raise FileNotFoundError(
                f"data: torchvision's {name} is not in {root} ({error}); pass its folder as root, "
                "or download=True to download it"
            ) from error
        return True

    train_name = next(n for n in ("train", "trainval", "unsplit") if exists(n))
    test_name = next(n for n in ("test", "val", "unsplit") if exists(n))
    has_splits = bool({"split", "train"} & set(arguments))
    own_val = "split" in arguments and (train_name, test_name) == ("train", "test")
    own_val = own_val and exists("val")
    names = _names(whole(train_name), name)

    def read(split: str, form: Form) -> Split:
        held_apart = split == "test" or (split == "val" and own_val)
        source = whole((test_name if split == "test" else split) if held_apart else train_name)
        labels = torch.tensor([int(label) for label in _labels(source)])
        if not has_splits:
            rows = cut(labels, split)
        elif held_apart:
            rows = list(range(len(labels)))
        else:
            rows = train_or_val(labels, split, own_val)
        place = str(root.resolve())
        mark = digest_texts(RESIZED, name, place, str(form), split, str(labels.tolist()))
        return TorchvisionImages(source, rows, form, f"torchvision/{mark}"), labels[rows]

    twin = _OF_COOP.get(name)
    told = f"torchvision's splits, not CoOp's (coop:{twin})" if twin else None
    return Source(names, read, TEMPLATES, splits=told)


def _names(data: Any, name: str) -> list[str]:
    if name == "ImageNet":  # the first words of the synsets are not distinct
        return list(open_clip.IMAGENET_CLASSNAMES)
    found = getattr(data, "classes", None) or getattr(data, "categories", None)
    if not found:
        raise ValueError(
            f"data: torchvision's {name} has no class names; save it as one image folder per class"
        )
    return [str(n).replace("_", " ") for n in found]


def _labels(data: Any) -> Sequence[Any]:
    for name in ("targets", "labels", "_labels", "y"):
        found = getattr(data, name, None)
        if found is not None:
            return list(found)
    return [data[i][1] for i in range(len(data))]
