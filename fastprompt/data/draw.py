"""The images that are drawn from a split, without those that cannot be decoded."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from .._utils.hashing import digest_texts
from .dataset import ImageDataset
from .encoded import Checked, EncodedImages
from .few_shot import sample

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawn:
    """A draw from a whole split.

    Attributes:
        data: the whole split.
        rows: the rows that were drawn.
        broken: the rows that cannot be decoded, with what is wrong.
        fingerprint: what identifies the drawn images: their content, labels and form for encoded
            pictures; that of the whole split for others.
        tag: what identifies the draw.
        few: whether these are few-shot images, not the whole split.
    """

    data: ImageDataset
    rows: list[int]
    broken: Mapping[int, str]
    fingerprint: str
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
    """Draw ``shots`` images per class (all if None); decode and hash encoded pictures once.

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
    checked = Checked()
    broken, digests = checked.broken, checked.digests
    while True:
        if own is None:
            rows = sample(labels, classes, shots, seed, broken)
        else:
            rows = [row for row in own if int(labels[row]) in classes and row not in broken]
        if not isinstance(data, EncodedImages) or digests.keys() >= set(rows):
            break
        checked.add(data, rows, f"check {split} images")
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
    if isinstance(data, EncodedImages):
        content = f"{data.fingerprint_of(rows, [digests[row] for row in rows])}/{split}"
    else:
        content = getattr(data, "fingerprint", "")
    return Drawn(data, rows, broken, content, tag, few=shots is not None)


def _first(broken: Mapping[int, str]) -> str:
    more = f" ({len(broken)} images in all)" if len(broken) > 1 else ""
    return f"{next(iter(broken.values()))}{more}"
