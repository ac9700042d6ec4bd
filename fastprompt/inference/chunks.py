"""Pictures through a classifier on several workers, in chunks of batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice

import torch

from .._utils.hashing import digest_json, digest_texts
from .._utils.progress import Progress
from ..data.dataset import evenly
from ..evaluation.units import describe
from ..model.classifier import CLIPClassifier
from ..runners import HERE, Runner
from .running import Item, Part, run, usable_workers
from .sources import Picture

BATCHES = 4  # batches of a chunk: a worker decodes ahead only within one
_LOOKED_AT = 8  # pictures that tell whether a worker has the same files


class Chunks:
    """Classifies chunks of pictures; sent to workers with the classifier.

    Args:
        classifier, batch, workers: see `run`.
        some: pictures that all workers must read alike.
    """

    def __init__(
        self, classifier: CLIPClassifier, batch: int, workers: int, some: Sequence[Picture]
    ) -> None:
        self.classifier, self.batch, self.workers, self.some = classifier, batch, workers, some

    def title(self, chunk: Sequence[Item]) -> str:
        """Return the chunk in words."""
        names = [item.name for item in chunk if isinstance(item, Picture)] or ["images"]
        return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"

    def facts(self) -> dict[str, str]:
        """Return hashes of the classifier and of some pictures."""
        model = self.classifier
        return {
            "model": digest_json(describe(model)),
            "settings": digest_json([self.batch, model.classnames]),
            "pictures": digest_texts(*(_content(picture) for picture in self.some)),
        }

    def __call__(self, chunk: Sequence[Item]) -> list[Part]:
        return list(run(self.classifier, chunk, self.batch, self.workers))


def run_on(
    runner: Runner,
    classifier: CLIPClassifier,
    items: Iterable[Item],
    batch: int,
    workers: int,
    bar: Progress | None = None,
    *,
    every: Sequence[Item] = (),
) -> Iterator[Part]:
    """Yield the outputs for batches of pictures, in order, as `run` does, computed by ``runner``.

    The batches are the same, so that their outputs are, too. All workers must read some of
    ``every``, by default of the first chunk, alike.
    """
    if runner is HERE:
        yield from run(classifier, items, batch, workers)
        return
    chunks, done = _chunked(items, BATCHES * batch), 0
    first = next(chunks, [])
    known = [item for item in every or first if isinstance(item, Picture)]
    some = [known[i] for i in evenly(_LOOKED_AT, len(known))]
    work = Chunks(classifier, batch, workers, some)
    with runner.team(work, classifier.clip.device) as team:
        for parts in team.each(chain([first] if first else [], chunks), bar):
            for part in parts:
                read = [place + done for place in part.read]
                yield replace(part, read=read, unread={i + done: w for i, w in part.unread.items()})
            done += sum(len(part.read) + len(part.unread) for part in parts)


def decoders(workers: int | None, runner: Runner, device: torch.device) -> int:
    """Return the number of decoding threads: one where each worker has one processor."""
    if workers is None and runner is not HERE and device.type == "cpu":
        return 1
    return usable_workers(workers)


def _chunked(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    coming = iter(items)
    while chunk := list(islice(coming, size)):
        yield chunk


def _content(picture: Picture) -> str:
    """Return a hash of a picture's pixels, or why it cannot be read."""
    try:
        image = picture.open()
        return digest_texts(repr(image.size), image.tobytes().hex())
    except ValueError as error:
        return str(error)
