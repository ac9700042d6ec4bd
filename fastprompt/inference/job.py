"""Predictions into a file, batch by batch, so that a killed process loses at most one batch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from .._utils.checks import first_difference
from .._utils.files import (
    read_json,
    read_tensors,
    remove_temporaries,
    write_json,
    write_tensors,
)
from .._utils.hashing import digest, digest_texts
from .._utils.locks import holding
from .._utils.progress import Progress
from ..model.classifier import CLIPClassifier
from ..runners import HERE, Runner
from .chunks import run_on
from .predicting import probabilities_of
from .running import Part, told
from .sources import Picture
from .tables import Best, write_embeddings, write_table

KIND = "predictions"
# settings that a message names with their values
_PLAIN = ("top", "batch", "precision", "temperature", "embeddings")


@dataclass(frozen=True)
class Job:
    """Predictions of pictures, written to ``out``.

    While it runs, the folder ``.NAME.parts`` beside ``out`` holds a file per batch. At the end
    ``out`` is written, and ``NAME.json`` with the settings, the counts and the pictures that could
    not be read.

    Attributes:
        classifier: its predictions are written.
        pictures: what is predicted, in the order of the rows.
        out: the file, in a format of `check_format`.
        embeddings: the npz file of the image features; None for none.
        top: the number of classes of each row.
        batch, workers, temperature: see `predict`.
        run: the run's folder, for the record.
        runner: where the predictions are computed.
    """

    classifier: CLIPClassifier
    pictures: Sequence[Picture]
    out: Path
    embeddings: Path | None
    top: int
    batch: int
    workers: int
    temperature: float
    run: str
    runner: Runner = HERE

    @property
    def parts(self) -> Path:
        """The folder of the batches."""
        return self.out.with_name(f".{self.out.name}.parts")

    @property
    def record(self) -> Path:
        """The file of the settings and counts."""
        return self.out.with_name(f"{self.out.name}.json")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the file depends on."""
        model = self.classifier
        state = {k: v for k, v in model.state_dict().items() if not k.startswith("clip.")}
        return {
            "run": self.run,
            "model": model.clip.fingerprint,
            "prompts": digest(state),
            "classes": model.classnames,
            "pictures": len(self.pictures),
            "picture_names": digest_texts(*(picture.name for picture in self.pictures)),
            "top": self.top,
            "batch": self.batch,
            "precision": model.precision,
            "temperature": self.temperature,
            "embeddings": None if self.embeddings is None else str(self.embeddings),
        }

    def check(self) -> None:
        """Raise an error if files of other settings, or other files, are in the way.

        Raises:
            FileExistsError: the message names the setting.
        """
        if self._known(self.record) is None and self._known(self.parts / "job.json") is None:
            for path in (self.out, self.embeddings):
                if path is not None and path.exists():
                    raise FileExistsError(
                        f"{'out' if path == self.out else 'embeddings'}: {path} exists, and is not "
                        "of this command; choose another name"
                    )

    def _known(self, path: Path) -> dict[str, Any] | None:
        """Return the record of the same job, None if there is none; raise if it is of another."""
        if not path.exists():
            return None
        found = read_json(path)
        wrong = _difference(found.get("settings"), self.settings)
        if wrong:
            raise FileExistsError(
                f"out: {self.out} was begun or written with other settings: {wrong}; choose "
                f"another name, or remove {self.out}, {self.record.name} and {self.parts.name}"
            )
        return found

    def write(self, *, progress: bool = True) -> dict[str, Any]:
        """Predict what is left, write the files, and return the content of the record.

        Raises:
            FileExistsError: as `check`.
            BlockingIOError: another process writes to ``out``.
        """
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with holding(self.out.with_name(f".{self.out.name}.lock"), "out"):
            self.check()
            for path in (self.out, self.record, self.embeddings):
                if path is not None:
                    remove_temporaries(path.parent, path.name)
            known, files = self._known(self.record), (self.out, self.embeddings or self.out)
            if known is None or not all(path.exists() for path in files):
                self._predict(progress)
                known = self._finish()
            if self.parts.exists():
                shutil.rmtree(self.parts)
            return known

    def _predict(self, progress: bool) -> None:
        if not (self.parts / "job.json").exists():
            # batches without settings: their removal was stopped
            shutil.rmtree(self.parts, ignore_errors=True)
            write_json(self.parts / "job.json", {"settings": self.settings})
        remove_temporaries(self.parts)
        left = [start for start in self._starts() if not self._part(start).exists()]
        total = len(self.pictures)
        again = total - sum(min(self.batch, total - start) for start in left)
        # a batch that is complete has all its pictures: only the last one of all is smaller
        pictures = [p for start in left for p in self.pictures[start : start + self.batch]]
        with Progress(total, "predict", "img", initial=again, show=progress) as bar:
            how = self.batch, self.workers, bar
            found = run_on(self.runner, self.classifier, pictures, *how, every=self.pictures)
            for start, part in zip(left, told(found, bar), strict=True):
                self._store(start, part)

    def _starts(self) -> range:
        return range(0, len(self.pictures), self.batch)

    def _part(self, start: int) -> Path:
        return self.parts / f"{start // self.batch:08d}.safetensors"

    def _store(self, start: int, part: Part) -> None:
        first = min([*part.read, *part.unread])
        shares, labels = probabilities_of(part.logits, self.temperature).topk(self.top)
        tensors = {
            "read": torch.tensor(part.read, dtype=torch.int64) - first,
            "labels": labels,
            "probabilities": shares.float(),
        }
        if self.embeddings is not None:
            tensors["features"] = part.features.float()
        unread = {str(place - first): why for place, why in part.unread.items()}
        write_tensors(self._part(start), tensors, {"kind": KIND, "unread": json.dumps(unread)})

    # ---- the files at the end ----------------------------------------------------------------

    def _finish(self) -> dict[str, Any]:
        unread = {
            self.pictures[start + int(place)].name: why
            for start in self._starts()
            for place, why in json.loads(self._read(start)[1]["unread"]).items()
        }
        if self.embeddings is not None:
            write_embeddings(self.embeddings, self._best)
        write_table(self.out, self._best(), self.classifier.classnames, self.top)
        counts = {"read": len(self.pictures) - len(unread), "unread": unread}
        record = {"settings": self.settings, **counts}
        write_json(self.record, record)
        return record

    def _read(self, start: int) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        return read_tensors(self._part(start), KIND)

    def _best(self) -> Iterator[Best]:
        for start in self._starts():
            found = self._read(start)[0]
            names = [self.pictures[start + place].name for place in found["read"].tolist()]
            yield Best(names, found["labels"], found["probabilities"], found.get("features"))


def _difference(found: Any, own: Mapping[str, Any]) -> str:
    """Name the first setting that differs; empty if none does."""
    if not isinstance(found, Mapping):
        return "its record is damaged"
    if found.get("classes") != own["classes"]:
        return f"now {first_difference(own['classes'], found.get('classes') or [])}"
    for key in _PLAIN:
        if found.get(key) != own[key]:
            return f"{key} was {found.get(key)!r}, now it is {own[key]!r}"
    if found.get("pictures") != own["pictures"]:
        return f"there were {found.get('pictures')} pictures, now there are {own['pictures']}"
    for key, words in (("picture_names", "pictures"), ("model", "model"), ("prompts", "prompts")):
        if found.get(key) != own[key]:
            return f"the {words} were others"
    return ""
