"""Random crops and flips of a batch, on its device.

torchvision's transforms draw one crop for a whole batch, and kornia, whose draw one for each image,
is a large dependency for a single function. The boxes are drawn on the CPU for a whole epoch, so
that an image's crop depends neither on how batches are split nor on the device.
"""

import math

import numpy as np
import torch
from torch import Tensor

from .._utils.checks import check_count, check_images, check_number

_TRIES = 10  # torchvision's, before the middle of the image is taken
_ROWS = 1 << 16  # images drawn at once: bounds the memory, changes nothing


class RandomCrops:
    """Random resized crops and horizontal flips, one for each image.

    The distribution is that of torchvision's ``RandomResizedCrop`` on a square image: area uniform,
    aspect ratio log-uniform, ten tries to fit into the image, then the largest box in its middle.
    Unlike there, boxes are not rounded to whole pixels, and so don't depend on the image's size.

    Args:
        scale: least and largest area of a crop, as a share of the image.
        ratio: least and largest aspect ratio, width over height.
        flip: mirror an image with probability 1/2; the crops are the same without.
        seed: of the draws.

    Raises:
        ValueError, TypeError: an argument out of its range.
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
            raise ValueError(f"scale must be at most 1, the whole image, got {scale}")
        if not isinstance(flip, bool):
            raise TypeError(f"flip must be True or False, got {flip!r}")
        self.flip, self.seed = flip, check_count(seed, "seed", least=0)
        if seed >= 2**32:
            raise ValueError(f"seed must be below 2**32, got {seed}")

    def draw(self, n: int, epoch: int) -> Tensor:
        """Boxes of all images of a data set in an epoch: row i belongs to image i.

        Args:
            n: images in the data set.
            epoch: from 0.

        Returns:
            ``top, left, height, width, flip``, float32 ``[n, 5]`` on the CPU: shares of the image's
            side, and 1 where the image is mirrored. The same seed and epoch give the same bits.
        """
        check_count(n, "n", least=0)
        check_count(epoch, "epoch", least=0)
        # torch's generator reads 32 bits of a seed: mix both numbers into them, so that no sum or
        # product of the two, such as the one that orders the images, meets the same stream
        mixed = np.random.SeedSequence((self.seed, epoch)).generate_state(1)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        boxes = torch.empty(n, 5)
        for part in boxes.split(_ROWS):
            draws = (len(part), 2 * _TRIES + 3)
            part.copy_(self._boxes(torch.rand(draws, generator=generator, dtype=torch.float64)))
        return boxes

    def _boxes(self, uniform: Tensor) -> Tensor:
        """Boxes from numbers uniform in [0, 1), one row for each image."""
        areas, ratios, rest = uniform.split([_TRIES, _TRIES, 3], dim=1)
        (least, most), (flattest, widest) = self.scale, (math.log(r) for r in self.ratio)
        areas = least + (most - least) * areas
        ratios = torch.exp(flattest + (widest - flattest) * ratios)
        # the last column is what always fits
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
        """Cut out the boxes and resize them to the images' size, bilinearly.

        Crops are never larger than the image, so there is nothing to smooth (no antialiasing). For
        a box of whole pixels this is torchvision's ``resized_crop``: what lies outside the box is
        not read. Nothing waits for the device.

        Args:
            images: float32 or float64 ``[B, 3, S, S]`` in [0, 1]; values are not checked.
            boxes: their rows of `draw`, ``[B, 5]``, on the same device.

        Returns:
            As ``images``, a new tensor.

        Raises:
            ValueError, TypeError: images or boxes of a wrong shape or dtype, or not on one device.
        """
        check_images(images, values=False)
        side = images.shape[-1]
        if images.shape[-2] != side:
            raise ValueError(f"images must be square [B, 3, S, S], got {list(images.shape)}")
        if boxes.shape != (len(images), 5) or not boxes.is_floating_point():
            raise ValueError(
                f"boxes must be floating-point [{len(images)}, 5], rows of draw(), got "
                f"{boxes.dtype} {list(boxes.shape)}"
            )
        if boxes.device != images.device:
            raise ValueError(
                f"boxes must be on {images.device} as the images are, got {boxes.device}: move "
                "them there once an epoch"
            )
        top, left, height, width, flip = boxes.to(images.dtype).unbind(dim=1)
        rows, columns = _positions(top, height, side), _positions(left, width, side)  # [B, S]
        columns = torch.where(flip[:, None] > 0.5, columns.flip(1), columns)
        return _read(_read(images, rows, 2), columns, 3)


def _rising(pair: tuple[float, float], name: str) -> tuple[float, float]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(f"{name} must be a pair (low, high), got {pair!r}")
    low, high = (check_number(value, name, above=0) for value in pair)
    if low > high:
        raise ValueError(f"{name} must be (low, high) with low <= high, got {pair}")
    return low, high


def _positions(start: Tensor, length: Tensor, side: int) -> Tensor:
    """Where along an axis the result's pixels are read: ``[B, side]``, in pixels of the image.

    Args:
        start, length: of the box, as shares of the side, ``[B]``.
    """
    start, length = side * start[:, None], side * length[:, None]
    centers = torch.arange(side, dtype=start.dtype, device=start.device) + 0.5
    # pixel i's center is at i + 0.5
    at = start + length / side * centers - 0.5
    # the middle, for a box of less than a pixel: both bounds meet there
    margin = (length / 2).clamp(max=0.5)
    at = at.clamp(start + margin - 0.5, start + length - margin - 0.5)
    # such a box at the edge has its middle beyond the last center
    return at.clamp(0, side - 1)


def _read(images: Tensor, at: Tensor, dim: int) -> Tensor:
    """The images ``[B, 3, S, S]`` at positions ``[B, S]`` along ``dim``, linear in between.

    Two reads along each axis take as long as `F.grid_sample`, whose coordinates in [-1, 1] are off
    by 3e-5 pixels at 224: a box that is the whole image would not give it back.
    """
    lower = at.floor()
    upper = (lower + 1).clamp(max=images.shape[dim] - 1)
    shape = [len(at), 1, 1, 1]
    shape[dim] = at.shape[1]
    first, second = (
        images.gather(dim, end.long().view(shape).expand(images.shape)) for end in (lower, upper)
    )
    # never beyond its ends, rounded or not: [0, 1] needs no clamp
    return torch.lerp(first, second, (at - lower).view(shape))
