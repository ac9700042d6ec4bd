"""`predict`: class probabilities of pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from PIL import Image
from torch import Tensor

from .._utils.checks import check_count, check_flag, check_images, check_number, shown
from .._utils.progress import Progress
from ..model.classifier import CLIPClassifier
from ..runners import HERE, Runner, runner_of
from .chunks import decoders, run_on
from .running import BATCH, Item, Part, outputs_of, told
from .sources import Picture, find_pictures

Images: TypeAlias = Tensor | str | Path | Image.Image | Iterable[str | Path | Image.Image]


@dataclass(frozen=True)
class Predictions:
    """The result of `predict` for the N images that were read, of C classes.

    Attributes:
        paths: the images' paths; ``"image 0"`` and so on for images that have none.
        labels: the most probable class of each image, int64 ``[N]``.
        probabilities: ``[N, C]``, at least float32; they sum to 1.
        classnames: the C class names.
        embeddings: unnormalized image features ``[N, D]`` if they were asked for, else None.
        unread: why images could not be read, by path.
        temperature: the number by which the logits were divided; 1 for none.
    """

    paths: list[str]
    labels: Tensor
    probabilities: Tensor
    classnames: list[str]
    embeddings: Tensor | None
    unread: dict[str, str]
    temperature: float

    @property
    def names(self) -> list[str]:
        """The name of the most probable class of each image."""
        return [self.classnames[label] for label in self.labels.tolist()]

    def __len__(self) -> int:
        return len(self.paths)


def predict(
    classifier: CLIPClassifier,
    images: Images,
    *,
    batch: int = BATCH,
    workers: int | None = None,
    embeddings: bool = False,
    temperature: float = 1.0,
    progress: bool = False,
    runner: Runner | str | None = None,
) -> Predictions:
    """Predict class probabilities of pictures: the softmax of the classifier's logits.

    Pictures are decoded in threads while the model runs, at most two batches ahead.

    Args:
        classifier: such as ``tuner.classifier`` or ``clip.zero_shot(...)``.
        images: pixels ``[N, C, H, W]`` in [0, 1], a path or a PIL image, or a list or another
            iterable of these two. A path is a file, a folder, a pattern, a manifest or a tar file,
            see `find_pictures`. Files are decoded as by `load_data` (upright, transparent areas
            white); PIL images are converted as by ``classifier.preprocess``.
        batch: the number of images that the model takes at once.
        workers: the number of decoding threads. Default: that of the processors, at most eight.
        embeddings: whether to return the image features.
        temperature: divides the logits, such as the one that ``fastprompt evaluate --calibrate``
            has fitted.
        progress: show a progress bar, or a line every 10 seconds.
        runner: ``"ray"`` or a `fastprompt.runners.Ray` predicts on the workers of a Ray cluster,
            with one decoding thread by default where they have no GPU; not for a tensor.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: ``images`` is empty, a tensor has another shape or values outside of [0, 1], or
            a number is out of range.
        TypeError: ``classifier`` or an image has another type.
    """
    if not isinstance(classifier, CLIPClassifier):
        raise TypeError(
            f"classifier must be a CLIPClassifier, such as tuner.classifier, got "
            f"{shown(classifier)}"
        )
    check_count(batch, "batch")
    runner = runner_of(runner)
    threads = decoders(workers, runner, classifier.clip.device)
    check_flag(embeddings, "embeddings")
    check_flag(progress, "progress")
    check_number(temperature, "temperature", above=0)
    if isinstance(images, Tensor) and runner is not HERE:
        raise ValueError("runner must be None for a tensor of images; pass paths or PIL images")
    names: list[str] = []
    classifier = classifier.for_inference()
    if isinstance(images, Tensor):
        total: int | None = len(images)
        names = [f"image {i}" for i in range(len(images))]
    else:
        items = _items(images)
        total = len(items) if isinstance(items, list) else None
    with Progress(total, "predict", "img", show=progress) as bar:
        if isinstance(images, Tensor):
            parts = _of_tensor(classifier, images, batch)
        else:
            known = items if isinstance(items, list) else ()
            own = _named(items, names)
            parts = run_on(runner, classifier, own, batch, threads, bar, every=known)
        found = list(told(parts, bar))
    if not found:
        raise ValueError("images must not be empty")
    return _joined(classifier, found, names, embeddings, temperature)


def probabilities_of(logits: Tensor, temperature: float) -> Tensor:
    """Return ``softmax(logits / temperature)``, ``[N, C]``."""
    return (logits if temperature == 1 else logits / temperature).softmax(dim=-1)


def _of_tensor(classifier: CLIPClassifier, images: Tensor, batch: int) -> Iterator[Part]:
    check_images(images, channels=classifier.clip.channels)
    classifier.clip.check_pixels(images)
    if not len(images):
        raise ValueError("images must not be empty")
    start = 0
    for pixels in images.split(batch):
        yield Part(list(range(start, start + len(pixels))), *outputs_of(classifier, pixels), {})
        start += len(pixels)


def _items(images: object) -> Iterable[Item]:
    """Return pictures and PIL images; paths in a list are looked for at once, others in turn."""
    if isinstance(images, (str, Path, Image.Image)):
        images = [images]
    if not isinstance(images, Iterable):
        raise TypeError(
            f"images must be a tensor, a path, a PIL image or a list of these two, got "
            f"{shown(images)}"
        )
    each = (item for one in images for item in _of_one(one))
    return list(each) if isinstance(images, (list, tuple)) else each


def _of_one(one: object) -> list[Item]:
    if isinstance(one, Image.Image):
        return [one]
    if not isinstance(one, (str, Path)):
        raise TypeError(f"images must have only paths and PIL images, got {shown(one)}")
    return list(find_pictures([one]))


def _named(items: Iterable[Item], names: list[str]) -> Iterator[Item]:
    """Pass the items on, and append their names."""
    for item in items:
        names.append(item.name if isinstance(item, Picture) else f"image {len(names)}")
        yield item


def _joined(
    classifier: CLIPClassifier,
    parts: list[Part],
    names: list[str],
    embeddings: bool,
    temperature: float,
) -> Predictions:
    probabilities = probabilities_of(torch.cat([part.logits for part in parts]), temperature)
    return Predictions(
        paths=[names[place] for part in parts for place in part.read],
        labels=probabilities.argmax(dim=-1),
        probabilities=probabilities,
        classnames=classifier.classnames,
        embeddings=torch.cat([part.features for part in parts]) if embeddings else None,
        unread={names[i]: why for part in parts for i, why in part.unread.items()},
        temperature=temperature,
    )
