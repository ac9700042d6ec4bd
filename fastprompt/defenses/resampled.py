"""Differentiable defenses in which each pixel is a weighted mean of input pixels.

Both multiply the rows and the columns by matrices. This avoids `F.interpolate`, whose gradient
depends on a GPU's order of summation, and cuDNN, which rounds float32 convolutions to TF32.
"""

import torch
from torch import Tensor

from .._utils.checks import check_count, check_number
from .._utils.dtypes import at_least_float32
from .base import Defense, straight_through

_LARGEST = 10  # size of the padded image, as a multiple of the image's
_WIDEST = 10_001  # pixels of a smoothing kernel; memory grows with it


class RandomResizePad(Defense):
    """Resizes each image at random and pads it with black at a random position; differentiable.

    Xie et al., "Mitigating adversarial effects through randomization", ICLR 2018. Sizes
    (whole pixels) and positions (where the image fits) are drawn uniformly. The paper resizes
    images of 299 pixels by nearest neighbor and pads them to the network's 331. CLIP accepts one
    size only, so here the padded image is resized to the input's size. Both resizing steps are
    bilinear (half-pixel centers, no antialiasing) to have a gradient. The default range is theirs,
    299/331 (about 0.9) to 1.

    Args:
        low, high: smallest and largest size, as fractions of the image's size; all images are
            padded to ``high``.
    """

    randomized = True

    def __init__(self, low: float = 0.9, high: float = 1.0) -> None:
        super().__init__()
        self.low = check_number(low, "low", above=0, high=_LARGEST)
        self.high = check_number(high, "high", above=0, high=_LARGEST)
        if not low < high:
            raise ValueError(f"low must be less than high, got low={low} and high={high}")

    def defend(self, images: Tensor) -> Tensor:
        x = at_least_float32(images)
        # a size, top and left per image
        draws = torch.rand(len(x), 3, dtype=torch.float32, device=x.device)
        rows = self._matrix(x.shape[2], draws[:, 0], draws[:, 1], x)  # [B, H, H]
        columns = self._matrix(x.shape[3], draws[:, 0], draws[:, 2], x)  # [B, W, W]
        return _in_box(torch.einsum("bih,bchw,bjw->bcij", rows, x, columns)).to(images.dtype)

    def _matrix(self, n: int, share: Tensor, place: Tensor, like: Tensor) -> Tensor:
        """Resampling matrices ``[B, n, n]`` of an axis of n pixels; draws ``[B]`` are in [0, 1)."""
        least = max(1, round(self.low * n))
        most = max(least, round(self.high * n))
        # floor(u k) < k for every float32 u < 1, whereas floor(a + u k) may round up to a + k
        size = least + (share * (most - least + 1)).floor()
        start = (place * (most - size + 1)).floor()
        size, start = (number.to(like.dtype)[:, None] for number in (size, start))
        padded = _bilinear(n, torch.arange(most, device=like.device) - start, size)  # [B, most, n]
        if most == n:
            return padded
        whole = torch.full((1, 1), float(n), dtype=like.dtype, device=like.device)
        back = torch.arange(n, dtype=like.dtype, device=like.device)[None]
        return _bilinear(most, back, whole) @ padded

    def extra_repr(self) -> str:
        return f"low={self.low:g}, high={self.high:g}"


class GaussianSmoothing(Defense):
    """Convolves with a truncated Gaussian kernel normalized to sum 1; differentiable.

    The border is padded by replicating edge pixels, so a constant image is unchanged.

    Args:
        sigma: standard deviation in pixels, 0.01 to 100.
        kernel_size: odd; by default, the smallest that covers three sigma on each side.
    """

    def __init__(self, sigma: float, kernel_size: int | None = None) -> None:
        super().__init__()
        self.sigma = check_number(sigma, "sigma", low=0.01, high=100)
        # -(-a // 1) rounds up
        size = 2 * int(-(-3 * sigma // 1)) + 1 if kernel_size is None else kernel_size
        if check_count(size, "kernel_size", most=_WIDEST) % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {size}; it needs a center pixel")
        self.kernel_size = size

    def defend(self, images: Tensor) -> Tensor:
        x = at_least_float32(images)
        rows, columns = (self._matrix(n, x) for n in x.shape[2:])
        return _in_box(rows @ x @ columns.mT).to(images.dtype)

    def _matrix(self, n: int, like: Tensor) -> Tensor:
        """Weights of an axis of ``n`` pixels, ``[n, n]``; each row sums to 1."""
        reach = self.kernel_size // 2
        pixel = torch.arange(n, dtype=like.dtype, device=like.device)
        source = torch.arange(-reach, n + reach, dtype=like.dtype, device=like.device)
        distance = (source - pixel[:, None]).abs()  # [n, n + 2 reach]
        weights = torch.exp(-0.5 * (distance / self.sigma) ** 2) * (distance <= reach)
        weights = weights / weights.sum(dim=1, keepdim=True)
        before, inside, after = weights.split([reach, n, reach], dim=1)
        inside = inside.clone()
        inside[:, 0] += before.sum(dim=1)
        inside[:, -1] += after.sum(dim=1)
        return inside

    def extra_repr(self) -> str:
        return f"sigma={self.sigma:g}, kernel_size={self.kernel_size}"


def _in_box(images: Tensor) -> Tensor:
    """Clamp to [0, 1] with the identity's gradient; values are outside only by rounding."""
    # the gradient of clamp would be 0 for a white pixel that rounding moved to 1 + 1e-7
    return straight_through(images, images.clamp(0, 1))


def _bilinear(n: int, pixel: Tensor, size: Tensor) -> Tensor:
    """Bilinear weights for resizing ``n`` pixels to ``size``; zero for a ``pixel`` out of range.

    Args:
        pixel: output positions, ``[B, K]``.
        size: output sizes, ``[B, 1]`` or ``[1, 1]``.

    Returns:
        ``[B, K, n]``.
    """
    at = ((pixel + 0.5) * (n / size) - 0.5).clamp(0, n - 1)
    source = torch.arange(n, dtype=size.dtype, device=size.device)
    weights = (1 - (at[..., None] - source).abs()).clamp_min(0)
    return weights * ((pixel >= 0) & (pixel < size))[..., None]
