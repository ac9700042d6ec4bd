"""Images of a report: clean image, perturbation, adversarial image."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from .comparison import Method, path_words, radius
from .runs import Source

_MOST = 8  # maximum number of images shown per method
_WRONG_BEFORE = "misclassified before"
_WRONG = 2  # maximum number of those misclassified when clean; they show little about the attack


@dataclass(frozen=True)
class Picture:
    """Attributes:

    images: data URIs of the clean image, the perturbation and the adversarial image.
    label: the true class.
    clean, attacked: the predicted classes; None if unknown.
    verdict: ``fooled``, ``still correct`` or ``misclassified before`` the attack.
    """

    images: tuple[str, str, str]
    label: str
    clean: str | None
    attacked: str
    verdict: str


@dataclass(frozen=True)
class Grid:
    """Attributes:

    title: the method and the attack.
    pictures: the images shown.
    amplified: factor that scales the perturbation for display.
    size: height and width of an image in pixels.
    left_out: number of images misclassified before the attack that are not shown.
    """

    title: str
    pictures: list[Picture]
    amplified: float
    size: int
    left_out: int


def grids(methods: Sequence[Method], eps: float | None) -> list[Grid]:
    """Return a grid for each method with saved images of an attack, of several seeds the first.

    The attack is the strongest adaptive one at ``eps`` if its images were saved, else the first.

    Raises:
        ValueError: an image file is damaged or does not match its result.
    """
    kept: dict[int, dict[str, Tensor]] = {}
    out = []
    for method in (m.first for m in methods):
        best = method.strongest(eps)
        cells = [*([best] if best else []), *method.attacked().values()]
        for (cell,) in (cell.each for cell in cells):
            if id(cell.source) not in kept:
                kept[id(cell.source)] = cell.source.examples()
            tensors = kept[id(cell.source)]
            if f"adv.{cell.number}" in tensors:
                out.append(_grid(method, cell.source, cell.number, tensors))
                break
    return out


def _grid(method: Method, source: Source, number: int, tensors: dict[str, Tensor]) -> Grid:
    row = source.evaluation.rows[number]
    try:
        adv, told = tensors[f"adv.{number}"], tensors[f"prediction.{number}"].tolist()
        clean, labels = tensors["clean"], tensors["labels"].tolist()
        known = _clean_predictions(method, source)
        indices = tensors["indices"].tolist()
        if adv.shape != clean.shape or len(told) != len(adv):
            raise ValueError(
                f"adv.{number} has shape {list(adv.shape)}, but clean has {list(clean.shape)}"
            )
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{source.folder / 'examples.safetensors'} does not match its result.json "
            f"({error}); evaluate the run again"
        ) from None
    amplified = 0.5 / row["eps"] if row["eps"] else 1.0
    pictures = []
    befores = [known.get(index) for index in indices]
    found = list(map(_verdict, labels, befores, told))
    shown = _telling(found)
    for i in shown:
        pixels = clean[i].float() / 255
        before = befores[i]
        pictures.append(
            Picture(
                (
                    data_uri(pixels),
                    data_uri(0.5 + amplified * (adv[i] - pixels)),
                    data_uri(adv[i]),
                ),
                _name(source, labels[i]),
                None if before is None else _name(source, before),
                _name(source, told[i]),
                found[i],
            )
        )
    words = f"{row['attack']} at {radius(row['eps'])} ({path_words(row['path'])})"
    left_out = found.count(_WRONG_BEFORE) - sum(found[i] == _WRONG_BEFORE for i in shown)
    return Grid(f"{method.label} under {words}", pictures, amplified, clean.shape[-1], left_out)


def _telling(found: Sequence[str]) -> list[int]:
    """Select the images to show by their verdicts: first those classified correctly when clean."""
    right = [i for i, verdict in enumerate(found) if verdict != _WRONG_BEFORE]
    wrong = [i for i, verdict in enumerate(found) if verdict == _WRONG_BEFORE]
    return [*right, *wrong[:_WRONG]][:_MOST]


def _verdict(label: int, before: int | None, after: int) -> str:
    if before not in (None, label):
        return _WRONG_BEFORE
    return "still correct" if after == label else "fooled"


def _clean_predictions(method: Method, source: Source) -> dict[int, int]:
    """Return the predicted class of each clean image, by image index."""
    for row in source.evaluation.rows:
        if row["model"] == method.model and row["attack"] == "clean":
            indices = source.evaluation.data.get("indices") or []
            return dict(zip(indices, row.get("predictions") or [], strict=False))
    return {}


def _name(source: Source, label: int) -> str:
    if label < 0:
        return "NaN"
    names = source.evaluation.data.get("classnames")
    return str(names[label]) if names and label < len(names) else f"class {label}"


def data_uri(image: Tensor) -> str:
    """Encode pixels ``[C, H, W]`` in [0, 1] as a PNG data URI; NaN becomes black.

    Three channels are RGB; of any other number, the mean is shown in gray.
    """
    pixels = image.nan_to_num().clamp(0, 1)
    shown = pixels.permute(1, 2, 0) if len(pixels) == 3 else pixels.mean(dim=0)
    levels = (shown * 255).round().to(torch.uint8)
    out = io.BytesIO()
    Image.fromarray(levels.contiguous().numpy()).save(out, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
