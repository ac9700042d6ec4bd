"""Pictures through a classifier: decoded in threads ahead of the model, in batches."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

import torch
from PIL import Image
from torch import Tensor

from .._utils.checks import MOST_WORKERS, check_count
from .._utils.progress import Progress
from ..clip.preprocess import Preprocess
from ..model.classifier import CLIPClassifier
from .sources import Picture

Item: TypeAlias = Picture | Image.Image

BATCH = 64


@dataclass(frozen=True)
class Group:
    """Decoded pictures.

    Attributes:
        read: the places of the n pictures that were read, from 0.
        images: uint8 ``[n, C, H, W]``; None if none was read.
        unread: why each other picture could not be read, by place.
    """

    read: list[int]
    images: Tensor | None
    unread: dict[int, str]


@dataclass(frozen=True)
class Part:
    """The outputs for consecutive pictures, of which those in ``unread`` have none.

    Attributes:
        read: the places of the n pictures that were read, from 0.
        logits: ``[n, C]``, at least float32, on the CPU.
        features: unnormalized image features ``[n, D]``, at least float32, on the CPU.
        unread: why each other picture could not be read, by place.
    """

    read: list[int]
    logits: Tensor
    features: Tensor
    unread: dict[int, str]


def usable_workers(workers: int | None) -> int:
    """Return the number of decoding threads: the one asked for, or up to eight."""
    if workers is None:
        return min(8, os.cpu_count() or 1)
    return check_count(workers, "workers", most=MOST_WORKERS)


def told(parts: Iterable[Part], bar: Progress) -> Iterator[Part]:
    """Pass the parts on, and show their number, the rate and how many could not be read."""
    began, done, lost = time.monotonic(), 0, 0
    for part in parts:
        done += len(part.read) + len(part.unread)
        lost += len(part.unread)
        rate = done / max(time.monotonic() - began, 1e-9)
        bar.note(f"{rate:.1f} img/s" + (f", {lost} unread" if lost else ""))
        bar.update(len(part.read) + len(part.unread))
        yield part


def run(
    classifier: CLIPClassifier, items: Iterable[Item], batch: int, workers: int
) -> Iterator[Part]:
    """Yield the outputs for batches of pictures, in order; see `decoded`."""
    for group in decoded(classifier.preprocess, items, batch, workers):
        yield _outputs(classifier, group)


def decoded(
    preprocess: Preprocess, items: Iterable[Item], batch: int, workers: int
) -> Iterator[Group]:
    """Yield batches of pictures, in order; the last batch may be smaller.

    Threads decode at most two batches ahead: Pillow decodes and resizes without the interpreter's
    lock. A batch holds those of its pictures that can be read, so that its composition, on which
    rounding depends, does not depend on where a run was started.
    """
    done = 0
    with ThreadPoolExecutor(workers, "decode") as pool:
        found = _ahead(pool, preprocess, items, 2 * batch)
        while group := list(islice(found, batch)):
            read = {done + i: one for i, one in enumerate(group) if isinstance(one, Tensor)}
            unread = {done + i: one for i, one in enumerate(group) if isinstance(one, str)}
            yield Group(list(read), torch.stack(list(read.values())) if read else None, unread)
            done += len(group)


def _ahead(
    pool: ThreadPoolExecutor, pixels: Preprocess, items: Iterable[Item], most: int
) -> Iterator[Tensor | str]:
    """Decode pictures in the pool, at most ``most`` before the one that is yielded next."""
    waiting: deque[Future[Tensor | str]] = deque()
    try:
        for item in items:
            if len(waiting) >= most:
                yield waiting.popleft().result()
            # the caller may seek or use a PIL image meanwhile
            own = item if isinstance(item, Picture) else _copied(item)
            waiting.append(pool.submit(_decoded, pixels, own))
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:  # of a run that was stopped
            future.cancel()


def _decoded(pixels: Preprocess, item: Item | str) -> Tensor | str:
    """Return the picture as uint8 ``[C, H, W]``, or why it could not be read."""
    try:
        image = item.open() if isinstance(item, Picture) else item
    except ValueError as error:
        return str(error).removeprefix("data: ")
    if isinstance(image, str):
        return image
    # exact: the values are 8-bit integers divided by 255
    return (pixels(image) * 255).round_().to(torch.uint8)


def _copied(image: Image.Image) -> Image.Image | str:
    """Return a copy of the image, decoded if Pillow has only opened it, or why it is damaged."""
    try:
        return image.copy()
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise any error on a damaged file
        return str(error) or type(error).__name__


def _outputs(classifier: CLIPClassifier, group: Group) -> Part:
    if group.images is not None:
        logits, features = outputs_of(classifier, group.images.float() / 255)
    else:
        text = classifier.text_features.cpu()
        logits, features = text.new_empty(0, text.shape[-2]), text.new_empty(0, text.shape[-1])
    return Part(group.read, logits, features, group.unread)


# no_grad: what a tower caches in inference mode could not be used for an attack later
@torch.no_grad()
def outputs_of(classifier: CLIPClassifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits ``[B, C]`` and image features ``[B, D]`` of pixels, on the CPU."""
    features = classifier.encode_image(images.to(classifier.clip.device))
    logits = classifier.logits(features)
    return logits.cpu(), features.cpu()
