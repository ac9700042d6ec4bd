"""Data sources, conversion of images to uint8 tensors of one size, and splits."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from .._utils.checks import check_choice, check_count, shown
from ..clip.preprocess import Preprocess
from .dataset import ImageDataset

Split = tuple[ImageDataset, Tensor]  # a whole split and its labels
Size = int | tuple[int, int]  # side of a square image, or height and width

# part of the fingerprints of photographs: pictures that were resized otherwise are other data
RESIZED = "resized by open_clip"
# the names of splits, in lower case
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# a source without splits is split 70 / 10 / 20 per class
_SHARES = {"train": (0.0, 0.7), "val": (0.7, 0.8), "test": (0.8, 1.0)}
_MODES = {
    "resize_mode": ("shortest", "longest", "squash"),
    "interpolation": ("bicubic", "bilinear"),
}
_USUAL: dict[str, Any] = {"resize_mode": "shortest", "interpolation": "bicubic", "fill_color": 0}


@dataclass(frozen=True)
class Form:
    """Form of the images of a data set.

    Attributes:
        size: side of square images in pixels, or height and width.
        channels: 3 for RGB, 1 for gray.
        resize_mode, interpolation, fill_color: as in open_clip's preprocessing configurations.
    """

    size: Size = 48
    channels: int = 3
    resize_mode: str = "shortest"
    interpolation: str = "bicubic"
    fill_color: int = 0

    def __str__(self) -> str:
        """Return a part of fingerprints; for square RGB images, their side."""
        size = self.size if isinstance(self.size, int) else "x".join(map(str, self.size))
        parts = [str(size)] + ([] if self.channels == 3 else ["gray"])
        given = {key: getattr(self, key) for key in _USUAL}
        return "/".join(parts + [f"{k}={v}" for k, v in given.items() if v != _USUAL[k]])

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """Return a transform of pictures to uint8 ``[C, H, W]``."""
        return _Resize(self)

    def of_rendered(self, images: Tensor) -> Tensor:
        """Convert square RGB images, uint8 ``[N, 3, S, S]``; all of each image is kept."""
        if not isinstance(self.size, int):
            images = v2.functional.resize(images, list(self.size), antialias=True)
        if self.channels == 3:
            return images
        # torchvision would compute in torch's default dtype
        return v2.functional.rgb_to_grayscale(images.to(torch.float32)).to(torch.uint8)


def check_preprocess(given: Any) -> dict[str, Any]:
    """Check the keys of open_clip's preprocessing that decide how pictures are resized."""
    if not isinstance(given, Mapping) or not given.keys() <= _USUAL.keys():
        raise ValueError(
            f"preprocess must be a mapping with the keys {', '.join(_USUAL)}, such as "
            f"clip.preprocess, got {shown(given)}"
        )
    whole = {**_USUAL, **given}
    for key, accepted in _MODES.items():
        check_choice(whole[key], f"preprocess: {key}", accepted)
    check_count(whole["fill_color"], "preprocess: fill_color", least=0, most=255)
    return whole


class _Resize:
    """The preprocessing of `Preprocess`, to 8-bit integers."""

    def __init__(self, form: Form) -> None:
        self._pixels = Preprocess(
            form.size, form.channels, form.resize_mode, form.interpolation, form.fill_color
        )

    def __call__(self, image: Image.Image) -> Tensor:
        # exact: open_clip's values are 8-bit integers divided by 255
        return (self._pixels(image) * 255).round().to(torch.uint8)


class FewShots(Protocol):
    """A data set's own choice of few-shot images."""

    def rows(self, split: str, shots: int, seed: int) -> list[int] | None:
        """Return the rows of a split that are used, in order; None for all."""

    def is_stored(self, shots: int, seed: int) -> bool:
        """Return whether a file lists them; else they follow from the labels and the seed."""

    def origin(self, shots: int, seed: int) -> str:
        """Say where the choice comes from."""


@dataclass(frozen=True)
class Source:
    """A data set before any image is read.

    Attributes:
        classnames: its class names, in the order of the labels.
        read: returns a split, ``"train"``, ``"val"`` or ``"test"``, in a form.
        templates: its zero-shot templates.
        splits: whose splits these are, if that matters for a comparison.
        few_shots: its own choice of few-shot images; None for `few_shot.sample`.
        mask: for a variant of ImageNet, the label in ImageNet of each class.
        named: whether the classes have names; else ``classnames`` are the numbers of the labels.
        size: the size of the images unless another one is asked for.
    """

    classnames: list[str]
    read: Callable[[str, Form], Split]
    templates: tuple[str, ...]
    splits: str | None = None
    few_shots: FewShots | None = None
    mask: tuple[int, ...] | None = None
    named: bool = True
    size: Size = Form.size


class TorchvisionImages:
    """The items ``rows`` of a torchvision data set, as (uint8 tensor, int label)."""

    def __init__(self, data: Any, rows: Sequence[int], form: Form, fingerprint: str) -> None:
        self.data, self.rows, self.fingerprint = data, list(rows), fingerprint
        self._transform = form.transform()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._item(index, self._transform)

    def picture(self, index: int) -> tuple[Image.Image, int]:
        """Return a picture before it is resized, and its label."""
        return self._item(index, lambda image: image)

    def _item(self, index: int, change: Callable[[Any], Any]) -> tuple[Any, int]:
        row = self.rows[index]
        try:
            image, label = self.data[row]
            image = change(image)
        except Exception as error:  # Pillow's plugins raise any error on a damaged file
            samples = getattr(self.data, "samples", None)
            which = samples[row][0] if samples else f"image {row} of {type(self.data).__name__}"
            raise ValueError(f"data: {which} is unreadable ({error}); fix or remove it") from error
        return image, int(label)


def cut(labels: Tensor, split: str) -> list[int]:
    """Return the rows of one split of a source without splits, by `_SHARES` of each class.

    Of three or more images, each split has at least one. The seed is fixed, so that no few-shot
    seed can move test images into the training set.
    """
    rows: list[int] = []
    for label in labels.unique().tolist():
        mine = (labels == label).nonzero()[:, 0]
        generator = torch.Generator().manual_seed(label)
        order = mine[torch.randperm(len(mine), generator=generator)]
        rows += order[slice(*_bounds(len(mine))[split])].tolist()
    return sorted(rows)


def _bounds(n: int) -> dict[str, tuple[int, int]]:
    """Return first and end position of each split among ``n`` images of a class."""
    bounds = {split: (round(low * n), round(high * n)) for split, (low, high) in _SHARES.items()}
    first, end = bounds["val"]
    if n >= 3 and first == end:
        bounds["train"], bounds["val"] = (0, first - 1), (first - 1, end)
    return bounds


def train_or_val(labels: Tensor, split: str, own_val: bool) -> list[int]:
    """Return the rows of ``train`` or ``val``; holds out ``val`` unless the source has one."""
    everything = range(len(labels))
    if own_val:
        return list(everything)
    held = cut(labels, "val")
    return held if split == "val" else sorted(set(everything) - set(held))


def pick(
    split: str,
    own: Collection[str],
    labels_of: Callable[[str], Tensor],
    classes: Sequence[str],
    title: object,
) -> tuple[str, list[int]]:
    """Return from which of a source's own splits a split is read, and its rows there.

    A missing ``val`` is held out of ``train``; ``val`` is the test set if there is no ``test``.
    If there is only ``train``, or no split at all, each class of ``train`` is cut 70 / 10 / 20.

    Args:
        own: the splits that the source has.
        labels_of: returns the labels of one of them, int64 ``[N]``.
        title: the source, for messages.

    Raises:
        ValueError: the split does not exist, or a class is too small to be cut.
    """
    if set(own) <= {"train"}:
        labels = labels_of("train")
        rows = cut(labels, split)
        _check_cut(labels, rows, split, classes, title)
        return "train", rows
    own_val = {"val", "test"} <= set(own)
    if split == "test" or (split == "val" and own_val):
        part = split if split in own else "val"
        return part, list(range(len(labels_of(part))))
    if "train" not in own:
        raise ValueError(f"data: {title} has no train images, only {' and '.join(own)}")
    return "train", train_or_val(labels_of("train"), split, own_val)


def _check_cut(
    labels: Tensor, rows: list[int], split: str, classes: Sequence[str], title: object
) -> None:
    counts, held = (torch.bincount(part, minlength=len(classes)) for part in (labels, labels[rows]))
    for name, n, left in zip(classes, counts.tolist(), held.tolist(), strict=True):
        if not left:
            raise ValueError(
                f"data: {title} has too few images for a separate {split} split: {n} in {name!r}; "
                "provide at least 3 per class, or separate train, val and test images"
            )
