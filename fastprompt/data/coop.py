"""Data sets in CoOp's folders, with CoOp's splits, class names and few-shot draws."""

import logging
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .._utils.checks import some
from .._utils.names import unknown
from .._utils.unpickling import Record, read_records
from .coop_layouts import PARTS, Listing, missing, read_layout
from .coop_sets import ALIASES, PREFIX, SETS, CoOpSet
from .encoded import FileImages
from .splits import Form, Source, Split

log = logging.getLogger(__name__)

OWN_SPLITS = "CoOp's splits"
DATUM = "dassl.data.datasets.base_dataset.Datum"
_MOST_VAL_SHOTS = 4
_Picked = dict[str, list[int]]  # rows by split


class CoOpData:
    """A data set in CoOp's layout.

    Args:
        spec: the data set.
        root: the directory that holds ``spec.folder``.
        only: the pictures that ``train`` is restricted to, without suffixes. Few-shot files, whose
            pictures may be others, are then not used.

    Raises:
        FileNotFoundError: a file or folder, or a picture of the split file, is missing; the
            message says what to put where.
        ValueError: a file has another layout, or its labels and class names do not fit together.
    """

    def __init__(self, spec: CoOpSet, root: Path, only: Collection[str] | None = None) -> None:
        self.spec, self.folder = spec, root.absolute() / spec.folder
        self.images = self.folder / spec.images
        if lacking := missing(spec, root):
            raise FileNotFoundError(
                f"data: {self.title} needs {' and '.join(lacking)} in {root}, as CoOp's "
                f"DATASETS.md describes; put them there, or pass the folder that holds "
                f"{spec.folder} as root{_nearer(spec, root)}"
            )
        self._only, self.content = only, read_layout(spec, root)
        self._picked: dict[tuple[int, int], _Picked] = {}
        if spec.layout in ("split", "variants"):  # folders were listed just now
            self._check_pictures()
        if only is not None:
            self.content.splits["train"] = self.content.splits["train"].restricted(only)

    @property
    def title(self) -> str:
        """The name that `load_data` takes."""
        return f"{PREFIX}{self.spec.name}"

    @property
    def source(self) -> Source:
        """The data set as `load_data` uses it."""
        return Source(
            self.content.classnames,
            self.read,
            (self.spec.template,),
            splits=OWN_SPLITS,
            few_shots=self,
            mask=self.content.mask,
        )

    def read(self, split: str, form: Form) -> Split:
        """Return the images of ``"train"``, ``"val"`` or ``"test"``, and their labels."""
        found = self._listing(split)
        files = [self.images / name for name in found.names]
        images = FileImages(files, found.labels, form, self.images, as_stored=True)
        return images, torch.tensor(found.labels, dtype=torch.int64)

    # ---- few shots -----------------------------------------------------------------------------

    def rows(self, split: str, shots: int, seed: int) -> list[int] | None:
        """Return CoOp's few-shot rows of a split, of all classes; None for the whole split."""
        if split not in self._drawn_parts:
            return None
        if (shots, seed) not in self._picked:
            file = self._pickle(shots, seed)
            self._picked[shots, seed] = (
                self._draw(shots, seed) if file is None else self._read_pickle(file)
            )
            log.info("data: few-shot images of %s: %s", self.title, self.origin(shots, seed))
        return self._picked[shots, seed][split]

    def is_stored(self, shots: int, seed: int) -> bool:
        return self._pickle(shots, seed) is not None

    def origin(self, shots: int, seed: int) -> str:
        """Say whether the few-shot list is that of CoOp's file, or drawn."""
        file = self._pickle(shots, seed)
        if file is None:
            return f"drawn as by CoOp, seed {seed}"
        return file.relative_to(self.folder).as_posix()

    @property
    def _drawn_parts(self) -> tuple[str, ...]:
        # the validation images of ImageNet are its test images
        return ("train",) if "ImageNet" in self.spec.name else ("train", "val")

    def _pickle(self, shots: int, seed: int) -> Path | None:
        file = self.folder / "split_fewshot" / f"shot_{shots}-seed_{seed}.pkl"
        return file if file.is_file() and self._only is None else None

    def _draw(self, shots: int, seed: int) -> _Picked:
        """Draw as Dassl's ``generate_fewshot_dataset``: train, then val, from one stream."""
        stream, out = random.Random(seed), {}
        for part in self._drawn_parts:
            n = shots if part == "train" else min(shots, _MOST_VAL_SHOTS)
            by_label: dict[int, list[int]] = {}
            for row, label in enumerate(self._listing(part).labels):
                by_label.setdefault(label, []).append(row)
            out[part] = [
                row
                for rows in by_label.values()
                for row in (stream.sample(rows, n) if len(rows) >= n else rows)
            ]
            if few := [label for label, rows in by_label.items() if len(rows) < n]:
                names = [f"{self.content.classnames[y]} ({len(by_label[y])})" for y in few]
                log.warning(
                    "data: %s has %d classes with fewer than %d %s images, of which all are taken, "
                    "as by CoOp: %s",
                    *(self.title, len(few), n, part, some(names)),
                )
        return out

    def _read_pickle(self, file: Path) -> _Picked:
        content = read_records(file, DATUM, "data")
        out = {}
        for part in self._drawn_parts:
            items = content.get(part) if isinstance(content, dict) else None
            if not isinstance(items, list):
                raise ValueError(f"data: {file} must hold a dict with the list {part!r}")
            out[part] = self._found(items, part, file)
        return out

    def _found(self, items: Sequence[Any], part: str, file: Path) -> list[int]:
        """Return the rows of pickled pictures, whose absolute paths end as those of the split."""
        listing = self._listing(part)
        known = {name: row for row, name in enumerate(listing.names)}
        rows, strange = [], []
        for item in items:
            state = item.state if isinstance(item, Record) else None
            facts = state if isinstance(state, dict) else {}
            path, label = facts.get("_impath"), facts.get("_label")
            if not isinstance(path, str) or type(label) is not int:
                raise ValueError(f"data: {file} has an entry in {part} that is not a Datum")
            steps = path.replace("\\", "/").split("/")
            ends = ("/".join(steps[i:]) for i in range(len(steps)))  # the longest first
            row = next((known[end] for end in ends if end in known), None)
            if row is None or listing.labels[row] != label:
                strange.append(path)
            else:
                rows.append(row)
        if strange:
            raise ValueError(
                f"data: {file} has {len(strange)} pictures that are not in the {part} split of "
                f"{self.title} or have other labels there: {some(strange)}; use the split file "
                "that it was made with, or remove it to draw with the seed"
            )
        return rows

    # ---- pictures ------------------------------------------------------------------------------

    def _listing(self, split: str) -> Listing:
        found = self.content.splits
        if split not in found:
            raise ValueError(
                f"data: {self.title} has no {split} images, only {' and '.join(found)}"
            )
        return found[split]

    def _check_pictures(self) -> None:
        """Raise FileNotFoundError if pictures of a split are missing."""
        listings = self.content.splits.values()
        lost = [name for listing in listings for name in listing.names if not self._is_file(name)]
        of = sum(len(listing.names) for listing in listings)
        if lost:
            raise FileNotFoundError(
                f"data: {len(lost)} of the {of} pictures of {self.title} are missing in "
                f"{self.images}: {some(lost)}; put them there, or use the split file of these "
                "pictures"
            )

    def _is_file(self, name: str) -> bool:
        return (self.images / name).is_file()


def find_coop(name: str, root: Path, only: Collection[str] | None = None) -> CoOpData:
    """Return the data set ``coop:NAME``; raises as `CoOpData`, or ValueError for other names."""
    return CoOpData(SETS[canonical(name)], root, only)


def canonical(name: str) -> str:
    """Return CoOp's name without ``coop:``; aliases are replaced."""
    own = name.removeprefix(PREFIX)
    own = ALIASES.get(own, own)
    if own not in SETS:
        raise unknown("data set of CoOp", own, [*SETS, *ALIASES])
    return own


def _nearer(spec: CoOpSet, root: Path) -> str:
    """Suggest a root in which the data set is, if the given one is a level too high or low."""
    below = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    for place in (root.resolve().parent, *below):
        if (place / spec.folder).is_dir() and not missing(spec, place):
            return f", such as {place}"
    return ""


@dataclass(frozen=True)
class Found:
    """What there is of a data set.

    Attributes:
        name: its name for `load_data`.
        images: the number of pictures by split; empty if the data set cannot be used.
        classes: the number of classes.
        few_shots: the number of few-shot files.
        missing: the files and folders that it lacks, relative to the root.
        problem: why it cannot be used, if nothing is missing; else empty.
        begun: whether its folder exists.
    """

    name: str
    images: Mapping[str, int]
    classes: int
    few_shots: int
    missing: Sequence[str]
    problem: str
    begun: bool


def survey(root: Path) -> list[Found]:
    """Look for all data sets of CoOp in ``root``."""
    return [_found_of(spec, root) for spec in SETS.values()]


def _found_of(spec: CoOpSet, root: Path) -> Found:
    name, folder, lacking = f"{PREFIX}{spec.name}", root / spec.folder, missing(spec, root)
    if lacking:
        return Found(name, {}, 0, 0, lacking, "", folder.is_dir())
    try:
        content = CoOpData(spec, root).content
    except (ValueError, OSError) as error:
        return Found(name, {}, 0, 0, [], str(error).removeprefix("data: "), True)
    splits = content.splits
    images = {part: len(splits[part].names) for part in PARTS if part in splits}
    pickles = len(list((folder / "split_fewshot").glob("shot_*-seed_*.pkl")))
    return Found(name, images, len(content.classnames), pickles, [], "", True)
