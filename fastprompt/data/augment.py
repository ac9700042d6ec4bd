"""Random crops and flips of a batch of images, computed on its device.

torchvision's transforms draw one crop per batch; kornia draws one per image, but is a large
dependency for a single function. The boxes of a whole epoch are drawn on the CPU, so the crop of an
image depends neither on the split into batches nor on the device.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .._utils.checks import check_count, check_flag, check_images, check_number, check_seed

_TRIES = 10  # as in torchvision, which then falls back to a central crop
_ROWS = 1 << 16  # images drawn at once; limits memory, does not change the result


class RandomCrops:
    """Random resized crops and horizontal flips, drawn independently for each image.

    The distribution is that of torchvision's ``RandomResizedCrop`` on a square image (sides are
    fractions of the image's sides, also of an image that is not square): the area is
    uniform and the aspect ratio log-uniform; if no box fits in ten tries, the largest central box
    is used. Unlike torchvision's, the boxes are not rounded to whole pixels, so they do not depend
    on the image size.

    Args:
        scale: minimum and maximum area of a crop, as a fraction of the image area.
        ratio: minimum and maximum aspect ratio, width / height, relative to the image's.
        flip: mirror each image with probability 1/2. Does not change the crops.
        seed: the seed of the random draws, below 2**32.

    Raises:
        ValueError: an argument is out of range.
        TypeError: an argument has the wrong type.
    """

    def __init__(
        self,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        *,
        flip: bool = True,
        seed: int = 0,
    ) -> None:
        self.scale = _rising(scale, "scale")
        self.ratio = _rising(ratio, "ratio")
        if self.scale[1] > 1:
            raise ValueError(f"scale must be at most 1 (the whole image), got {scale}")
        self.flip, self.seed = check_flag(flip, "flip"), check_seed(seed)

    def draw(self, n: int, epoch: int) -> Tensor:
        """Draw the boxes of all images of a data set for one epoch; row i belongs to image i.

        Args:
            n: the number of images in the data set.
            epoch: the epoch, counted from 0.

        Returns:
            ``top, left, height, width, flip``, float32 ``[n, 5]`` on the CPU: fractions of the
            image's side, and 1 for a mirrored image. Bitwise equal for equal seed and epoch.
        """
        check_count(n, "n", least=0)
        generator = self._generator(epoch)
        boxes = torch.empty(n, 5, dtype=torch.float32)
        for part in boxes.split(_ROWS):
            part.copy_(self._boxes(_uniform(len(part), generator)))
        return boxes

    def numbers(self, n: int, epoch: int) -> Tensor:
        """Draw the numbers from which `draw` makes boxes, for `pixel_box`.

        Args:
            n, epoch: as for `draw`.

        Returns:
            float64 ``[n, 23]`` in [0, 1), on the CPU; row i belongs to image i.
        """
        return _uniform(check_count(n, "n", least=0), self._generator(epoch))

    def pixel_box(
        self, numbers: Sequence[float], height: int, width: int
    ) -> tuple[int, int, int, int, bool]:
        """Return the box of a picture in whole pixels, as torchvision rounds it.

        The ratio is that of the box in pixels, also for a picture that is not square.

        Args:
            numbers: the picture's row of `numbers`.
            height, width: of the picture.

        Returns:
            ``top, left, height, width`` and whether to mirror the crop.
        """
        down, along, mirrored = numbers[2 * _TRIES :]
        low, high = self.ratio
        for area, ratio in zip(numbers[:_TRIES], numbers[_TRIES : 2 * _TRIES], strict=True):
            pixels = height * width * _between(*self.scale, area)
            aspect = math.exp(_between(math.log(low), math.log(high), ratio))
            w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
            if 0 < w <= width and 0 < h <= height:
                # a number just below 1 may be rounded up
                top = min(int(down * (height - h + 1)), height - h)
                left = min(int(along * (width - w + 1)), width - w)
                return top, left, h, w, self.flip and mirrored < 0.5
        h = min(height, max(1, round(width / low)))
        w = min(width, max(1, round(height * high)))
        return (height - h) // 2, (width - w) // 2, h, w, self.flip and mirrored < 0.5

    def _generator(self, epoch: int) -> torch.Generator:
        check_count(epoch, "epoch", least=0, most=2**63)
        # torch's generator uses 32 bits of a seed: hash both numbers into them, so that the stream
        # differs from those seeded by a sum or product of the two, such as the image order's
        mixed = np.random.SeedSequence((self.seed, epoch)).generate_state(1)
        return torch.Generator().manual_seed(int(mixed[0]))

    def _boxes(self, uniform: Tensor) -> Tensor:
        """Compute the boxes from numbers uniform in [0, 1), one row per image."""
        areas, ratios, rest = uniform.split([_TRIES, _TRIES, 3], dim=1)
        (least, most), (flattest, widest) = self.scale, (math.log(r) for r in self.ratio)
        areas = least + (most - least) * areas
        ratios = torch.exp(flattest + (widest - flattest) * ratios)
        # the last column is the central box, which always fits
        height, width = min(1.0, 1 / self.ratio[0]), min(1.0, self.ratio[1])
        heights = torch.cat([(areas / ratios).sqrt(), areas.new_full((len(areas), 1), height)], 1)
        widths = torch.cat([(areas * ratios).sqrt(), areas.new_full((len(areas), 1), width)], 1)
        fits = (heights <= 1) & (widths <= 1)  # [n, tries + 1]
        first = fits.int().argmax(dim=1, keepdim=True)
        height_of, width_of = (sizes.gather(1, first)[:, 0] for sizes in (heights, widths))
        down, along, mirrored = rest.unbind(dim=1)
        none_fit = first[:, 0] == _TRIES
        top = torch.where(none_fit, 0.5, down) * (1 - height_of)
        left = torch.where(none_fit, 0.5, along) * (1 - width_of)
        flip = (mirrored < 0.5) & self.flip
        return torch.stack([top, left, height_of, width_of, flip.to(top.dtype)], dim=1)

    def __call__(self, images: Tensor, boxes: Tensor) -> Tensor:
        """Crop the images to the boxes and resize the crops bilinearly to the images' size.

        No antialiasing is needed, since crops are never larger than the image. For a box of whole
        pixels the result equals torchvision's ``resized_crop``; pixels outside the box are not
        read. Does not synchronize with the device.

        Args:
            images: float32 or float64 ``[B, C, H, W]`` in [0, 1]; values are not checked.
            boxes: the images' rows of `draw`, ``[B, 5]``, on the same device.

        Returns:
            A new tensor with the shape and dtype of ``images``.

        Raises:
            ValueError: a shape, the boxes' dtype or their device is wrong.
            TypeError: ``images`` is not a float32 or float64 tensor.
        """
        check_images(images, values=False)
        if boxes.shape != (len(images), 5) or not boxes.is_floating_point():
            raise ValueError(
                f"boxes must be a floating-point tensor [{len(images)}, 5] with rows from draw(), "
                f"got {boxes.dtype} {list(boxes.shape)}"
            )
        if boxes.device != images.device:
            raise ValueError(
                f"boxes must be on the images' device {images.device}, got {boxes.device}; move "
                "them there once per epoch"
            )
        top, left, height, width, flip = boxes.to(images.dtype).unbind(dim=1)
        rows = _positions(top, height, images.shape[-2])  # [B, H]
        columns = _positions(left, width, images.shape[-1])  # [B, W]
        columns = torch.where(flip[:, None] > 0.5, columns.flip(1), columns)
        return _read(_read(images, rows, 2), columns, 3)


def _uniform(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, 2 * _TRIES + 3, generator=generator, dtype=torch.float64)


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


def _rising(pair: tuple[float, float], name: str) -> tuple[float, float]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(f"{name} must be a pair (low, high), got {pair!r}")
    low, high = (check_number(value, name, above=0) for value in pair)
    if low > high:
        raise ValueError(f"{name} must be (low, high) with low <= high, got {pair}")
    return low, high


def _positions(start: Tensor, length: Tensor, side: int) -> Tensor:
    """Return the sampling positions along an axis, ``[B, side]``, in pixels of the image.

    Args:
        start, length: of the box, as fractions of the side, ``[B]``.
    """
    start, length = side * start[:, None], side * length[:, None]
    centers = torch.arange(side, dtype=start.dtype, device=start.device) + 0.5
    # the center of pixel i is at i + 0.5
    at = start + length / side * centers - 0.5
    # for a box smaller than a pixel, both bounds are the center of the box
    margin = (length / 2).clamp(max=0.5)
    at = at.clamp(start + margin - 0.5, start + length - margin - 0.5)
    # the center of such a box at the edge lies beyond the last pixel center
    return at.clamp(0, side - 1)


def _read(images: Tensor, at: Tensor, dim: int) -> Tensor:
    """Interpolate images ``[B, C, H, W]`` linearly at positions ``[B, S]`` along ``dim``.

    Two gathers per axis take as long as `F.grid_sample`, whose coordinates in [-1, 1] have an error
    of 3e-5 pixels at size 224, so that a box of the whole image would not reproduce the image.
    """
    lower = at.floor()
    upper = (lower + 1).clamp(max=images.shape[dim] - 1)
    shape = [len(at), 1, 1, 1]
    shape[dim] = at.shape[1]
    first, second = (
        images.gather(dim, end.long().view(shape).expand(images.shape)) for end in (lower, upper)
    )
    # lerp never exceeds its end points, even after rounding, so no clamp to [0, 1] is needed
    return torch.lerp(first, second, (at - lower).view(shape))
