"""The data sets `photos-noise-1` to `photos-jpeg-3`: corrupted pictures of `photos`.

Four of the kinds of ImageNet-C (Hendrycks and Dietterich, ICLR 2019), at three strengths of our own
for small pictures. Splits, labels and class names are those of `photos`.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from zlib import crc32

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from . import photos
from .dataset import ImageTensors
from .splits import Form, Source, Split

# increase this if any image changes, since it is part of fingerprints
VERSION = 1


def _noise(image: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    noise = torch.randn(image.shape, generator=generator, dtype=torch.float32)
    return (image + noise * (255 * deviation)).round().clamp(0, 255).to(torch.uint8)


def _blur(image: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    sigma *= min(image.shape[1:]) / photos.SIZE
    size = 2 * math.ceil(3 * sigma) + 1
    return v2.functional.gaussian_blur(image, [size, size], [sigma, sigma])


def _contrast(image: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    # as torchvision's `adjust_contrast`, which computes in torch's default dtype
    x = image.to(torch.float32)
    gray = v2.functional.rgb_to_grayscale(x).floor() if len(x) == 3 else x
    return (factor * x + (1 - factor) * gray.mean()).clamp(0, 255).to(torch.uint8)


def _jpeg(image: Tensor, quality: int, generator: torch.Generator) -> Tensor:
    file = io.BytesIO()
    v2.functional.to_pil_image(image).save(file, "JPEG", quality=quality)
    return v2.functional.pil_to_tensor(Image.open(file))


_KINDS: Mapping[str, tuple[Callable[..., Tensor], Sequence[float]]] = {
    "noise": (_noise, (0.04, 0.08, 0.12)),  # standard deviation, of pixels in [0, 1]
    "blur": (_blur, (0.6, 1.0, 1.5)),  # standard deviation in 1/64 of the shorter side
    "contrast": (_contrast, (0.6, 0.4, 0.25)),  # factor of the distance to the mean gray
    "jpeg": (_jpeg, (30, 15, 8)),  # quality
}
NAMES = tuple(
    f"{photos.NAME}-{kind}-{strength}"
    for kind, (_, values) in _KINDS.items()
    for strength in range(1, len(values) + 1)
)


def corrupted_source(name: str) -> Source:
    """Return one of the data sets `NAMES`."""
    whole = photos.photos_source()
    return replace(whole, read=partial(_read, name, whole.read))


def _read(name: str, read: Callable[[str, Form], Split], split: str, form: Form) -> Split:
    _, kind, strength = name.split("-")
    change, values = _KINDS[kind]
    value = values[int(strength) - 1]
    images, labels = read(split, form)
    changed = []
    for row in range(len(labels)):
        # the same image, whichever others are read
        generator = torch.Generator().manual_seed(crc32(f"{kind}/{split}/{row}".encode()))
        changed.append(change(images[row][0], value, generator))
    mark = f"{name}/{split}/{form}px/v{VERSION}"
    return ImageTensors(torch.stack(changed), labels, mark), labels
