"""`load_data`: load a data set of any source."""

import inspect
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from .._utils.checks import (
    check_choice,
    check_count,
    check_flag,
    check_image_size,
    check_path,
    check_seed,
    shown,
    some,
)
from .._utils.hashing import digest_texts
from ..clip.frozen import FrozenCLIP
from .dataset import ImageDataset, ImageTensors
from .draw import Drawn, draw
from .encoded import EncodedImages
from .few_shot import Chosen, Classes, class_range
from .find import BUILTIN, find_source, is_loaded, moved, title_of
from .naming import ClassNames, Templates, class_names, templates_of
from .splits import Form, Size, Source, check_preprocess

log = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]


@dataclass
class Data:
    """A data set for tuning; each split is rendered or opened on first access.

    Picture files are decoded once before the first split is returned, so that broken
    ones are found before tuning; the first access to ``train`` or ``val`` includes ``test``.

    Attributes:
        name: the name or path passed to `load_data`, or the type of loaded data.
        classnames: the names of the selected classes.
        templates: zero-shot templates for the class names.
        image_size: side of square images in pixels, or height and width.
        arguments: the arguments of `load_data`, for loading the same data again.
        splits: whose splits these are: CoOp's, or torchvision's where CoOp has others; else None.
        mask: for CoOp's ImageNet and its variants, the label in ImageNet of each class.
    """

    name: str
    classnames: list[str]
    templates: tuple[str, ...]
    image_size: Size
    arguments: dict[str, Any]
    splits: str | None
    mask: tuple[int, ...] | None = field(repr=False)
    _source: Source = field(repr=False)
    _chosen: range = field(repr=False)

    @cached_property
    def train(self) -> ImageDataset:
        """The training images, ``shots`` per class."""
        return self._split("train")

    @cached_property
    def val(self) -> ImageDataset:
        """The validation images: ``min(shots, 4)`` per class as in CoOp; all if shots is "all".

        Those of CoOp's ImageNet are always its test images.
        """
        return self._split("val")

    @cached_property
    def test(self) -> ImageDataset:
        """All test images of the selected classes."""
        return self._split("test")

    @property
    def val_is_test(self) -> bool:
        """Whether the validation images are the test images, as of CoOp's ImageNet."""
        return self.mask is not None

    @property
    def source(self) -> dict[str, Any]:
        """What a run records of its data: ``arguments``, and the ``directory`` of relative paths.

        For a loaded data set ``name`` is None, and ``type`` its type: it cannot be loaded again.
        With ``on_error="skip"`` also ``unreadable``, the number of unreadable images by split;
        ``splits`` if it is known whose they are, and ``few_shots``, the origin of CoOp's draw.
        """
        source = dict(self.arguments)
        if is_loaded(source["name"]):
            source |= {"name": None, "type": self.name}
        if self.name not in BUILTIN:
            source["directory"] = str(Path.cwd())
        if self.splits is not None:
            source["splits"] = self.splits
        if self._source.few_shots is not None and source["shots"] != "all":
            source["few_shots"] = self._source.few_shots.origin(source["shots"], source["seed"])
        if self.arguments["on_error"] == "skip":
            source["unreadable"] = {part: len(d.broken) for part, d in self._drawn.items()}
        return source

    def resized(
        self, image_size: Size, channels: int = 3, preprocess: Mapping[str, Any] | None = None
    ) -> "Data":
        """Return the same data with images of another size; see `load_data`."""
        form = _form(image_size, channels, preprocess)
        changed = {"image_size": form.size, "channels": channels, "preprocess": _given(preprocess)}
        return replace(self, image_size=form.size, arguments={**self.arguments, **changed})

    def for_model(self, clip: FrozenCLIP) -> "Data":
        """Return the same data, resized as by open_clip's preprocessing of the model."""
        return self.resized(clip.image_size, clip.channels, clip.preprocess)

    def counts(self, split: str) -> list[int]:
        """Return the number of images of each class in a split, before any draw of shots.

        Raises:
            ValueError: the data set has no such split.
        """
        _, labels = self._source.read(split, self.form)
        return torch.bincount(labels, minlength=self._chosen.stop)[list(self._chosen)].tolist()

    def contents(self, shots: Sequence[int | Literal["all"]], seeds: Sequence[int]) -> str:
        """Return a hash of the class names and of each split's labels and file names.

        Args:
            shots, seeds: those whose few-shot images are part of it, where a file lists them.
        """
        own, parts = self._source.few_shots, [*self.classnames]
        for split in ("train", "val", "test"):
            try:
                whole, labels = self._source.read(split, self.form)
            except ValueError:  # there is none
                continue
            parts += [split, *map(str, labels.tolist())]
            if isinstance(whole, EncodedImages):
                parts += whole.names(range(len(whole)))
            for n, seed in product((n for n in shots if n != "all"), seeds):
                if own is not None and own.is_stored(n, seed):
                    parts += [str(n), str(seed), *map(str, own.rows(split, n, seed) or ())]
        return digest_texts(*parts)

    @property
    def form(self) -> Form:
        """The form of the images."""
        given = self.arguments
        return _form(given["image_size"], given["channels"], given["preprocess"])

    @cached_property
    def _drawn(self) -> dict[str, Drawn]:
        return {}

    def _draw(self, split: str) -> Drawn:
        if split not in self._drawn:
            given, own = self.arguments, None
            limit = None if given["shots"] == "all" or split == "test" else given["shots"]
            whole = self._source.read(split, self.form)
            if limit is not None and self._source.few_shots is not None:
                own = self._source.few_shots.rows(split, limit, given["seed"])
                limit = None if own is None else limit
            if split == "val" and limit is not None:
                limit = min(limit, 4)
            skip = given["on_error"] == "skip"
            drawn = draw(*whole, self._chosen, limit, given["seed"], split, skip, own)
            self._drawn[split] = drawn
            if split == "train" and limit is not None and own is None:
                self._tell_few(Counter(whole[1][drawn.rows].tolist()), limit)
        return self._drawn[split]

    def _tell_few(self, drawn: Mapping[int, int], shots: int) -> None:
        few = [
            f"{name} ({drawn[label]})"
            for label, name in zip(self._chosen, self.classnames, strict=True)
            if drawn[label] < shots
        ]
        if few:
            log.warning(
                "data: %d classes of %s have fewer than %d training images, of which all are "
                "taken: %s",
                *(len(few), self.name, shots, some(few)),
            )

    def _split(self, split: str) -> ImageDataset:
        drawn = self._draw(split)
        data, rows, start = drawn.data, drawn.rows, self._chosen.start
        if split != "test" and isinstance(data, EncodedImages):
            for other in ("train", "val", "test"):
                self._draw(other)
        mark = f"{drawn.fingerprint}/{self.arguments['classes']}/{drawn.tag}"
        out: ImageTensors | Chosen
        if isinstance(data, ImageTensors):
            index = torch.tensor(rows, dtype=torch.int64)
            labels = data.labels[index] - start
            out = ImageTensors(data.images[index], labels, mark, self.classnames)
        else:
            out = Chosen(data, rows, start, mark, self.classnames)
            if isinstance(data, EncodedImages) and drawn.few:
                out.files = data.names(rows)
        out.source, out.unreadable = self.source, len(drawn.broken)
        return out


def load_data(
    name: Any,
    *,
    shots: int | Literal["all"] = "all",
    seed: int = 0,
    classes: Classes = "all",
    image_size: Size | None = None,
    channels: int = 3,
    root: str | Path | None = None,
    download: bool = False,
    classnames: ClassNames | None = None,
    templates: Templates | None = None,
    on_error: OnError = "raise",
    preprocess: Mapping[str, Any] | None = None,
    unseen_by: str | None = None,
) -> Data:
    """Load a data set for tuning.

    Args:
        name: ``"photos"``, a small part of Caltech101, and its corrupted pictures,
            ``"photos-noise-1"`` to ``"photos-noise-3"``, likewise ``blur``, ``contrast`` and
            ``jpeg``; the drawn sets ``"shapes"``, ``"patterns"``, ``"counts"``, and the shifted
            variants ``"shapes-outline"``, ``"shapes-recolored"``, ``"shapes-crowded"``; a folder
            with one subfolder of images per class (or ``train``, ``val``, ``test`` folders of
            these); a manifest, a ``.csv`` or ``.jsonl`` file with the columns ``path``, ``label``
            or ``classname``, and optionally ``split``; WebDataset shards: a ``.tar`` file, a
            pattern such as ``"train-{000..009}.tar"``, or a folder of these; ``"coop:Caltech101"``
            or another set in CoOp's folders, with CoOp's splits and names; the name of a
            torchvision data set; ``"hf:NAME"`` or ``"hf:FOLDER"``, which Hugging Face's `datasets`
            loads; ``"PREFIX:NAME"`` of another package's entry point ``fastprompt.data``; or a
            ``Dataset`` or ``DatasetDict`` that `datasets` has loaded. Images other than CoOp's and
            torchvision's are turned as their EXIF orientation says, 16-bit gray values are scaled
            to 8 bits, and transparent areas become white. Sources with the same picture files and
            labels, in the same order within each class, give equal images, draws and fingerprints.
        shots: training images per class (1, 2, 4, 8, 16, ...), or ``"all"``.
        seed: the seed of few-shot sampling. The splits do not depend on it. A set of CoOp has the
            images of its ``split_fewshot`` file for these shots and this seed, or CoOp's own draw.
        classes: ``"all"``, ``"base"`` (first half) or ``"new"`` (second half).
        image_size: side of square images in pixels, or ``(height, width)``, each at least 16;
            photographs are resized and center-cropped. Default: 64 for the package's
            photographs, else 48.
        channels: 3 for RGB images, 1 for gray ones.
        root: the root directory of CoOp's or of torchvision's data sets, by default ``data``; or
            the folder of a manifest's relative paths, by default that of the manifest.
        download: whether torchvision may download the data set.
        classnames: other class names: a mapping from the data set's own (the names of the class
            folders, or a manifest's labels), a list in the same order, or a file of one of both
            (JSON, YAML, or text with a class name, or a folder and its class name, per line).
            Default: the data set's own.
        templates: zero-shot templates: strings with one ``{}``, one such string, or a file with one
            per line. Default: the data set's own.
        on_error: ``"raise"``, or ``"skip"`` to leave out unreadable picture files.
        preprocess: how photographs are resized, as open_clip's ``PreprocessCfg``: ``resize_mode``
            (``"shortest"``, ``"longest"`` or ``"squash"``), ``interpolation`` and ``fill_color``.
            Default: ``"shortest"``, ``"bicubic"``. `Data.for_model` sets it for a model.
        unseen_by: of ``"coop:Caltech101"``, train only on pictures outside the pre-training of
            ``"tiny-photos"`` or ``"tiny-photos-robust"``. Few-shot images are then drawn as by CoOp
            from these, of which small classes have fewer than 16.

    Raises:
        ValueError: the name is unknown (the message suggests similar ones), an argument is out of
            range, a folder has another layout, a row of a manifest is wrong, there is only one
            class, or ``classnames`` do not fit; on access to a split, an image is unreadable, or a
            class is too small to be split.
        TypeError: a loaded data set is a stream, or an argument has another type.
        FileNotFoundError: the data or a file does not exist.
        RuntimeError: the package `datasets` is needed and not installed.
    """
    text = title_of(name)
    place = None if root is None else check_path(root, "root")
    check_flag(download, "download")
    check_seed(seed)
    if shots != "all":
        check_count(shots, "shots")
    check_choice(on_error, "on_error", get_args(OnError))
    source = find_source(name, place, download, unseen_by)
    form = _form(source.size if image_size is None else image_size, channels, preprocess)
    own = source.classnames
    if classnames is None and not source.named:
        raise ValueError(
            f"classnames: {text} has labels without class names; give the names of its "
            f"{len(own)} classes, or add a column classname"
        )
    names = class_names(own, classnames)
    chosen = class_range(len(names), classes)
    kept = [names[i] for i in chosen]
    if len(kept) < 2:
        of = "" if classes == "all" else f" in its {classes} half (classes={classes!r})"
        raise ValueError(
            f"data: {text} has only the class {kept[0]!r}{of}, but a classifier needs at least two "
            "classes"
            if kept
            else f"data: {text} has no class{of}"
        )
    arguments: dict[str, Any] = {
        "name": name if is_loaded(name) else text,
        "shots": shots,
        "seed": seed,
        "classes": classes,
        "image_size": form.size,
        "channels": channels,
        "root": None if root is None else str(root),
        "classnames": None if classnames is None else dict(zip(own, names, strict=True)),
        "templates": None if templates is None else list(templates_of(templates)),
        "on_error": on_error,
        "preprocess": _given(preprocess),
        "unseen_by": unseen_by,
    }
    prompts = tuple(arguments["templates"] or source.templates)
    mask = None if source.mask is None else tuple(source.mask[i] for i in chosen)
    return Data(text, kept, prompts, form.size, arguments, source.splits, mask, source, chosen)


def load_recorded(source: Mapping[str, Any], **changes: Any) -> Data:
    """Load the data that a run recorded, with some arguments of `load_data` changed.

    Relative paths are those of the directory in which the run was started, unless there is nothing.

    Raises:
        ValueError: ``source`` has no name, or as `load_data`.
        FileNotFoundError: the data does not exist any more.
    """
    known = inspect.signature(load_data).parameters.keys() & source.keys()
    given = {key: source[key] for key in known} | changes
    if not isinstance(given.get("name"), str):
        raise ValueError(f"data: a recorded data set needs a name, got {given.get('name')!r}")
    if source.get("directory"):
        recorded = {key: given[key] for key in {"name", "root"} & known - changes.keys()}
        given |= moved(recorded, check_path(source["directory"], "directory"))
    return load_data(**given)


def _form(image_size: Any, channels: int, preprocess: Mapping[str, Any] | None) -> Form:
    """Check the form of the images."""
    size = check_image_size(image_size)
    if isinstance(channels, bool) or channels not in (1, 3):
        raise ValueError(f"channels must be 1 (gray) or 3 (RGB), got {shown(channels)}")
    return Form(size, channels, **check_preprocess({} if preprocess is None else preprocess))


def _given(preprocess: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if preprocess is None else dict(preprocess)
