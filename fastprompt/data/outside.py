"""Images from outside: folders and torchvision's data sets, as uint8 tensors of one size."""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2

from .loading import ImageDataset

Split = tuple[ImageDataset, Tensor]
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


class Pictures:
    """A torchvision data set's items ``rows``, as (uint8 tensor, int label)."""

    def __init__(self, data: Any, rows: Sequence[int], fingerprint: str) -> None:
        self.data, self.rows, self.fingerprint = data, list(rows), fingerprint

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.data[self.rows[index]]
        return image, int(label)


def _hash(*texts: str) -> str:
    total = hashlib.sha256()
    for text in texts:
        total.update(text.encode() + b"\0")
    return total.hexdigest()


def _cut(labels: Tensor, part: str, seed: int) -> list[int]:
    """One part's rows where the source has no splits: each class cut at `_SHARES`, by ``seed``."""
    low, high = _SHARES[part]
    rows: list[int] = []
    for label in labels.unique().tolist():
        mine = (labels == label).nonzero()[:, 0]
        generator = torch.Generator().manual_seed(seed * 1_000_003 + label)
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


def folder_splits(
    path: Path, image_size: int, seed: int
) -> tuple[list[str], Callable[[str], Split]]:
    """Class names and splits of a folder in torchvision's ``ImageFolder`` layout.

    With ``train`` and ``test`` (or ``val``, ``valid``) folders inside, those are the splits; a
    missing ``val`` is cut from the training images. Otherwise each class is cut 70 / 10 / 20 by
    ``seed``.
    """
    inside = {p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")}
    val_name = "valid" if "valid" in inside else "val"
    own = "train" in inside and len(inside) > 1 and inside <= {"train", val_name, "test"}
    # a lone val folder is the test set: tuning must not see it
    test_name = "test" if "test" in inside else val_name
    own_val = {val_name, "test"} <= inside
    first = _folder(path / "train" if own else path, image_size)
    names = [c.replace("_", " ") for c in first[0].classes]

    def split(part: str) -> Split:
        data, labels, mark = first
        if not own:
            rows = _cut(labels, part, seed)
        elif part == "test" or (part == "val" and own_val):
            folder = path / (test_name if part == "test" else val_name)
            data, labels, mark = _folder(folder, image_size)
            if data.classes != first[0].classes:
                raise ValueError(f"data: {folder} has other classes than {path / 'train'}")
            rows = list(range(len(labels)))
        else:
            rows = _train_or_val(labels, part, own_val, seed)
        return Pictures(data, rows, f"folder/{mark}/{part}/{seed}"), labels[rows]

    return names, split


def _train_or_val(labels: Tensor, part: str, own_val: bool, seed: int) -> list[int]:
    """Rows of the training images, less those held out as ``val`` where the source has none."""
    everything = range(len(labels))
    if own_val:
        return list(everything)
    held = _cut(labels, "val", seed)
    return held if part == "val" else sorted(set(everything) - set(held))


@cache
def torchvision_names() -> list[str]:
    """torchvision's classification data sets: those that take a root and a split or a flag."""
    out = []
    for name in datasets.__all__:
        cls = getattr(datasets, name)
        if not inspect.isclass(cls):
            continue
        arguments = set(inspect.signature(cls.__init__).parameters)
        classifies = {"root", "transform"} <= arguments and arguments & {"train", "split"}
        if classifies and "transforms" not in arguments:
            out.append(name)
    return sorted(out)


def torchvision_splits(
    name: str, image_size: int, root: Path, download: bool, seed: int
) -> tuple[list[str], Callable[[str], Split]]:
    """Class names and splits of a torchvision data set; a missing ``val`` is cut from ``train``."""
    cls: Any = getattr(datasets, name)
    arguments = inspect.signature(cls.__init__).parameters
    extra = {"download": download} if "download" in arguments else {}
    by_name = "train" not in arguments

    @cache
    def whole(split_name: str) -> Any:
        option = {"split": split_name} if by_name else {"train": split_name == "train"}
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

    train_name = next((n for n in ("train", "trainval") if exists(n)), None)
    test_name = next((n for n in ("test", "val") if exists(n)), None)
    if train_name is None or test_name is None:
        raise ValueError(f"data: torchvision's {name} has no train and test splits")
    names = getattr(whole(train_name), "classes", None)
    if not names:
        raise ValueError(f"data: torchvision's {name} names no classes: save it as folders instead")
    own_val = by_name and test_name == "test" and train_name == "train" and exists("val")

    def split(part: str) -> Split:
        source_name = test_name if part == "test" else train_name
        if part == "val" and own_val:
            source_name = "val"
        source = whole(source_name)
        labels = torch.tensor([int(label) for label in _labels(source)])
        everything = list(range(len(labels)))
        rows = everything if part == "test" else _train_or_val(labels, part, own_val, seed)
        if source_name == "val":
            rows = everything
        mark = f"torchvision/{name}/{image_size}/{len(labels)}/{part}/{seed}"
        return Pictures(source, rows, mark), labels[rows]

    return [str(n).replace("_", " ") for n in names], split


def _labels(data: Any) -> Sequence[Any]:
    for name in ("targets", "labels", "_labels", "y"):
        found = getattr(data, name, None)
        if found is not None:
            return list(found)
    return [data[i][1] for i in range(len(data))]
