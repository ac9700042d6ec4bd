"""A few of the images that were attacked, kept to be looked at."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .._utils.files import read_tensors, write_tensors
from .sampling import evenly

SHOWN = 8
_KIND = "examples"
_PART = "examples of a part"


class Examples:
    """Attacked images by unit, in files of their own until the evaluation is done.

    Args:
        folder: of the evaluation; None keeps them in memory.

    Attributes:
        places: of the images that are kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.places: list[int] = []
        self._kept: dict[tuple[str, ...], dict[str, Tensor]] = {}

    def choose(self, right: Sequence[Sequence[bool]]) -> None:
        """Choose images that most models have right clean: an attack does nothing to the others.

        It is done before any attack, so that what is shown does not depend on who falls.

        Args:
            right: for each model, which of the images it has right; the images alike for all.
        """
        votes = [sum(image) for image in zip(*right, strict=True)]
        chosen: list[int] = []
        for most in sorted(set(votes), reverse=True):
            alike = [place for place, vote in enumerate(votes) if vote == most]
            chosen += [alike[i] for i in evenly(SHOWN - len(chosen), len(alike))]
        self.places = sorted(chosen)

    def _file(self, unit: tuple[str, ...]) -> Path:
        assert self.folder is not None
        mark = hashlib.sha256("/".join(unit).encode()).hexdigest()[:16]
        return self.folder / "examples" / f"{mark}.safetensors"

    def keep(self, unit: tuple[str, ...], places: Sequence[int], adv: Tensor) -> None:
        """Keep those of some attacked images that are shown; written before the unit counts."""
        mine = [i for i, place in enumerate(places) if place in self.places]
        if not mine:
            return
        tensors = {"places": torch.tensor([places[i] for i in mine]), "adv": adv[mine].cpu()}
        if self.folder is None:
            self._kept[unit] = tensors
        else:
            write_tensors(self._file(unit), tensors, {"kind": _PART})

    def of(self, units: Sequence[tuple[str, ...]], clean: Tensor) -> Tensor | None:
        """The shown images after an attack's units, in their order; clean where none touched it.

        None if parts of a stopped evaluation hold other images, which an older version chose.
        """
        out = clean.clone()
        for unit in units:
            tensors = self._kept.get(unit)
            if tensors is None and self.folder is not None and self._file(unit).exists():
                tensors = read_tensors(self._file(unit), _PART)[0]
            if tensors is not None:
                if not set(tensors["places"].tolist()) <= set(self.places):
                    return None
                for place, image in zip(tensors["places"].tolist(), tensors["adv"], strict=True):
                    out[self.places.index(place)] = image
        return out

    def write(self, tensors: dict[str, Tensor]) -> None:
        """``examples.safetensors``; the parts are dropped."""
        if self.folder is None:
            return
        whole, parts = self.folder / "examples.safetensors", self.folder / "examples"
        dropped = self.folder / "examples.dropped"
        if parts.exists() or not whole.exists():  # else it was done already
            write_tensors(whole, tensors, {"kind": _KIND})
        if parts.exists():
            # out of the way at once: with some of them gone the whole would be made without those
            parts.rename(dropped)
        for file in dropped.glob("*"):
            file.unlink()
        if dropped.exists():
            dropped.rmdir()
