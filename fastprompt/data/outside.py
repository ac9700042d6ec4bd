"""Images from outside: folders and torchvision's data sets, as uint8 tensors of one size."""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2

from .loading import ImageDataset

Split = tuple[ImageDataset, Tensor]  # a whole split and its labels
# torchvision's sets of single images with one label each; the rest is video, pairs, boxes, masks
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
# where a source has no split of its own, each class is cut 70 / 10 / 20
_SHARES = {"train": (0.0, 0.7), "val": (0.7, 0.8), "test": (0.8, 1.0)}


def to_square(image_size: int) -> Callable[[Any], Tensor]:
    """Picture to uint8 ``[3, S, S]``: RGB, shorter side to S (bicubic), the middle square."""
    return v2.Compose(
        [
            v2.RGB(),
            v2.PILToTensor(),
            v2.Resize(image_size, v2.InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(image_size),
        ]
    )


class TorchvisionImages:
    """A torchvision data set's items ``rows``, as (uint8 tensor, int label)."""

    def __init__(self, data: Any, rows: Sequence[int], fingerprint: str) -> None:
        self.data, self.rows, self.fingerprint = data, list(rows), fingerprint

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = self.rows[index]
        try:
            image, label = self.data[row]
        except OSError as error:  # Pillow's, of a broken file, too
            samples = getattr(self.data, "samples", None)
            which = samples[row][0] if samples else f"image {row}"
            raise ValueError(f"data: {which} can't be read: mend or remove it ({error})") from None
        return image, int(label)


def _hash(*texts: str) -> str:
    total = hashlib.sha256()
    for text in texts:
        total.update(text.encode() + b"\0")
    return total.hexdigest()


def _cut(labels: Tensor, part: str) -> list[int]:
    """One part's rows where the source has no splits: each class cut at `_SHARES`.

    Always the same cut: another few-shot seed must not move test images into the training set.
    """
    low, high = _SHARES[part]
    rows: list[int] = []
    for label in labels.unique().tolist():
        mine = (labels == label).nonzero()[:, 0]
        generator = torch.Generator().manual_seed(label)
        order = mine[torch.randperm(len(mine), generator=generator)]
        rows += order[round(low * len(mine)) : round(high * len(mine))].tolist()
    return sorted(rows)


def _folder(path: Path, image_size: int) -> tuple[datasets.ImageFolder, Tensor, str]:
    try:
        data = datasets.ImageFolder(str(path), transform=to_square(image_size))
    except FileNotFoundError as error:
        raise ValueError(f"data: {path} must hold one folder of images a class: {error}") from None
    stamps = []
    for file, label in data.samples:
        stat = Path(file).stat()
        stamps.append(f"{Path(file).relative_to(path)} {label} {stat.st_size} {stat.st_mtime_ns}")
    return data, torch.tensor(data.targets), _hash(str(image_size), *stamps)


def folder_splits(path: Path, image_size: int) -> tuple[list[str], Callable[[str], Split]]:
    """Class names and splits of a folder in torchvision's ``ImageFolder`` layout.

    With ``train`` and ``test`` (or ``val``, ``valid``) folders inside, those are the splits; a
    missing ``val`` is cut from the training images. Otherwise each class is cut 70 / 10 / 20.
    """
    inside = {p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")}
    val_name = "valid" if "valid" in inside else "val"
    own = "train" in inside and bool(inside & {val_name, "test"})
    # a lone val folder is the test set: tuning must not see it
    test_name = "test" if "test" in inside else val_name
    own_val = {val_name, "test"} <= inside
    first = _folder(path / "train" if own else path, image_size)
    names = [c.replace("_", " ") for c in first[0].classes]

    def split(part: str) -> Split:
        data, labels, mark = first
        if not own:
            rows = _cut(labels, part)
            if not rows:
                raise ValueError(
                    f"data: {path} has too few images for a {part} split of its own: at least 5 a "
                    "class, or put them into train, val and test folders"
                )
        elif part == "test" or (part == "val" and own_val):
            folder = path / (test_name if part == "test" else val_name)
            data, labels, mark = _folder(folder, image_size)
            if data.classes != first[0].classes:
                raise ValueError(f"data: {folder} has other classes than {path / 'train'}")
            rows = list(range(len(labels)))
        else:
            rows = _train_or_val(labels, part, own_val)
        return TorchvisionImages(data, rows, f"folder/{mark}/{part}"), labels[rows]

    return names, split


def _train_or_val(labels: Tensor, part: str, own_val: bool) -> list[int]:
    """Rows of the training images, less those held out as ``val`` where the source has none."""
    everything = range(len(labels))
    if own_val:
        return list(everything)
    held = _cut(labels, "val")
    return held if part == "val" else sorted(set(everything) - set(held))


def torchvision_splits(
    name: str, image_size: int, root: Path, download: bool
) -> tuple[list[str], Callable[[str], Split]]:
    """Class names and splits of a torchvision data set; a missing ``val`` is cut from ``train``."""
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
        return cls(str(root), transform=to_square(image_size), **option, **extra)

    def exists(split_name: str) -> bool:
        try:
            whole(split_name)
        except ValueError:  # torchvision's answer to a split it does not have
            return False
        except (RuntimeError, OSError) as error:
            raise FileNotFoundError(
                f"data: torchvision's {name} is not in {root} ({error}); pass its folder as root, "
                "or download=True where there is a network"
            ) from error
        return True

    train_name = next(n for n in ("train", "trainval", "unsplit") if exists(n))
    test_name = next(n for n in ("test", "val", "unsplit") if exists(n))
    has_splits = bool({"split", "train"} & set(arguments))
    own_val = "split" in arguments and (train_name, test_name) == ("train", "test")
    own_val = own_val and exists("val")
    names = _names(whole(train_name), name)

    def split(part: str) -> Split:
        held_apart = part == "test" or (part == "val" and own_val)
        source = whole((test_name if part == "test" else part) if held_apart else train_name)
        labels = torch.tensor([int(label) for label in _labels(source)])
        if not has_splits:
            rows = _cut(labels, part)
        elif held_apart:
            rows = list(range(len(labels)))
        else:
            rows = _train_or_val(labels, part, own_val)
        mark = _hash(name, str(root.resolve()), str(image_size), part, str(labels.tolist()))
        return TorchvisionImages(source, rows, f"torchvision/{mark}"), labels[rows]

    return names, split


def _names(data: Any, name: str) -> list[str]:
    if name == "ImageNet":  # the synsets' own first words are not distinct
        return list(open_clip.IMAGENET_CLASSNAMES)
    found = getattr(data, "classes", None) or getattr(data, "categories", None)
    if not found:
        raise ValueError(f"data: torchvision's {name} names no classes: save it as folders instead")
    return [str(n).replace("_", " ") for n in found]


def _labels(data: Any) -> Sequence[Any]:
    for name in ("targets", "labels", "_labels", "y"):
        found = getattr(data, name, None)
        if found is not None:
            return list(found)
    return [data[i][1] for i in range(len(data))]
