"""The images that are drawn from a split, without those that cannot be decoded."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from .._utils.hashing import digest_texts
from .dataset import ImageDataset
from .decode import find_unreadable
from .few_shot import sample
from .folder import FolderImages

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawn:
    """A draw from a whole split.

    Attributes:
        data: the whole split.
        rows: the rows that were drawn.
        broken: the rows that cannot be decoded, with what is wrong.
        tag: part of the fingerprint of the draw.
        few: whether these are few-shot images, not the whole split.
    """

    data: ImageDataset
    rows: list[int]
    broken: Mapping[int, str]
    tag: str
    few: bool


def draw(
    data: ImageDataset,
    labels: Tensor,
    classes: range,
    shots: int | None,
    seed: int,
    split: str,
    skip: bool,
    own: Sequence[int] | None = None,
) -> Drawn:
    """Draw ``shots`` images per class (all if None), and decode those of a folder once.

    Args:
        labels: the labels of all images, int64 ``[N]``.
        classes: the labels to draw.
        split: the split's name, for messages.
        skip: in the place of an unreadable image, draw the class's next one.
        own: the data set's own few-shot rows, of all classes, which are used instead of a draw;
            unreadable ones are left out.

    Raises:
        ValueError: an image is unreadable and ``skip`` is False; or no image of a class is left.
    """
    broken: dict[int, str] = {}
    decoded: set[int] = set()
    while True:
        if own is None:
            rows = sample(labels, classes, shots, seed, broken)
        else:
            rows = [row for row in own if int(labels[row]) in classes and row not in broken]
        if not isinstance(data, FolderImages) or decoded.issuperset(rows):
            break
        files = {row: data.files[row] for row in rows if row not in decoded}
        broken |= find_unreadable(files, f"check {split} images")
        decoded |= files.keys()
        if broken and not skip:
            raise ValueError(f"data: {_first(broken)}, or leave it out with on_error='skip'")
    if broken:
        left = set(labels[rows].tolist())
        if any(label not in left for label in set(labels.tolist()) & set(classes)):
            raise ValueError(f"data: {_first(broken)}; a class has no readable {split} image")
        log.warning("data: %d unreadable %s images are left out", len(broken), split)
    tag = f"shots={shots}/seed={seed}"
    if own is not None:
        tag += f"/own={digest_texts(*map(str, own))}"
    if broken:
        tag += f"/without={digest_texts(*map(str, sorted(broken)))}"
    return Drawn(data, rows, broken, tag, few=shots is not None)


def _first(broken: Mapping[int, str]) -> str:
    more = f" ({len(broken)} images in all)" if len(broken) > 1 else ""
    return f"{next(iter(broken.values()))}{more}"
