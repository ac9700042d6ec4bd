"""Store a few adversarial images for inspection."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .._utils.files import read_tensors, write_tensors
from ..data.dataset import evenly

SHOWN = 8
_KIND = "examples"
_PART = "examples of a part"


class Examples:
    """Adversarial images by unit, stored in separate files until the evaluation is complete.

    Args:
        folder: folder of the evaluation; None keeps the images in memory.

    Attributes:
        places: positions of the stored images among the evaluated images.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.places: list[int] = []
        self._kept: dict[tuple[str, ...], dict[str, Tensor]] = {}

    def choose(self, right: Sequence[Sequence[bool]]) -> None:
        """Choose images that most models classify correctly when clean; others are not attacked.

        Called before any attack, so that the choice does not depend on which images are fooled.

        Args:
            right: for each model, which images it classifies correctly, in the same order.
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

    def among(self, places: Sequence[int]) -> list[int]:
        """Return the chosen ones of some places."""
        return [place for place in places if place in self.places]

    def keep(self, unit: tuple[str, ...], places: Sequence[int], adv: Tensor) -> None:
        """Store the chosen images of a unit; called before the unit is recorded."""
        mine = [i for i, place in enumerate(places) if place in self.places]
        if not mine:
            return
        tensors = {"places": torch.tensor([places[i] for i in mine]), "adv": adv[mine].cpu()}
        if self.folder is None:
            self._kept[unit] = tensors
        else:
            write_tensors(self._file(unit), tensors, {"kind": _PART})

    def of(self, units: Sequence[tuple[str, ...]], clean: Tensor) -> Tensor | None:
        """Return the chosen images after an attack; images that it did not attack stay clean.

        Returns None if an older version of the library stored different images before a resume.
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
        """Write ``examples.safetensors`` and delete the files of the units."""
        if self.folder is None:
            return
        whole, parts = self.folder / "examples.safetensors", self.folder / "examples"
        dropped = self.folder / "examples.dropped"
        if parts.exists() or not whole.exists():  # otherwise already written
            write_tensors(whole, tensors, {"kind": _KIND})
        if parts.exists():
            # rename first: after an interrupted deletion, a rerun would write an incomplete file
            parts.rename(dropped)
        for file in dropped.glob("*"):
            file.unlink()
        if dropped.exists():
            dropped.rmdir()
