"""Image folders: one subfolder per class, or train, val and test folders of subfolders."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torchvision import datasets

from .._utils.hashing import digest_texts
from .splits import Form, Split, TorchvisionImages, cut, train_or_val


def _folder(path: Path, form: Form) -> tuple[datasets.ImageFolder, Tensor, str]:
    try:
        data = datasets.ImageFolder(str(path), transform=form.transform())
    except FileNotFoundError as error:
        raise ValueError(f"data: {path} must have one image folder per class: {error}") from None
    stamps = []
    for file, label in data.samples:
        stat = Path(file).stat()
        stamps.append(f"{Path(file).relative_to(path)} {label} {stat.st_size} {stat.st_mtime_ns}")
    return data, torch.tensor(data.targets), digest_texts(str(form), *stamps)


def folder_splits(path: Path, form: Form) -> tuple[list[str], Callable[[str], Split]]:
    """Return class names and splits of a folder in torchvision's ``ImageFolder`` layout.

    If the folder contains ``train`` and ``test`` (or ``val``, ``valid``), these are the splits, and
    a missing ``val`` is split off the training images. Otherwise each class is split 70 / 10 / 20.
    """
    inside = {p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")}
    val_name = "valid" if "valid" in inside else "val"
    own = "train" in inside and bool(inside & {val_name, "test"})
    # without a test folder, val is the test set and must not be used for tuning
    test_name = "test" if "test" in inside else val_name
    own_val = {val_name, "test"} <= inside
    first = _folder(path / "train" if own else path, form)
    names = [c.replace("_", " ") for c in first[0].classes]

    def read(split: str) -> Split:
        data, labels, mark = first
        if not own:
            rows = cut(labels, split)
            if not rows:
                raise ValueError(
                    f"data: {path} has too few images for a separate {split} split; provide at "
                    "least 3 per class, or put them into train, val and test folders"
                )
        elif split == "test" or (split == "val" and own_val):
            folder = path / (test_name if split == "test" else val_name)
            data, labels, mark = _folder(folder, form)
            if data.classes != first[0].classes:
                raise ValueError(f"data: {folder} has different classes from {path / 'train'}")
            rows = list(range(len(labels)))
        else:
            rows = train_or_val(labels, split, own_val)
        return TorchvisionImages(data, rows, f"folder/{mark}/{split}"), labels[rows]

    return names, read
