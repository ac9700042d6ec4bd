"""Defenses that read each pixel as a mean of others: smooth, with their own gradients.

Both work on rows and columns apart, as matrices: nothing of it depends on the order in which a GPU
adds, as `F.interpolate`'s gradient does, and cuDNN rounds float32 convolutions to TF32 by default.
"""

import torch
from torch import Tensor

from .._utils.checks import check_count, check_number
from .._utils.dtypes import at_least_float32
from .base import Defense, straight_through


class RandomResizePad(Defense):
    """Each image is resized at random and put at a random place on black; the gradient is its own.

    Xie et al., "Mitigating adversarial effects through randomization", ICLR 2018: sizes are whole
    pixels, all equally likely, and the place is any that holds the image. There a network takes 331
    pixels of images of 299, resized to the nearest pixel; CLIP takes one size alone, so the padded
    image is brought to the size of the one that came in, and both steps are bilinear (half-pixel
    centers, no antialiasing), which has a gradient. The default is the same range: 299/331 to 1.

    Args:
        low, high: least and largest size, as shares of the image's own; ``high`` is what all are
            padded to.
    """

    randomized = True

    def __init__(self, low: float = 0.9, high: float = 1.0) -> None:
        super().__init__()
        self.low = check_number(low, "low", above=0)
        self.high = check_number(high, "high", above=0)
        if not low < high:
            raise ValueError(f"low must be below high, got {low} and {high}")

    def defend(self, images: Tensor) -> Tensor:
        x = at_least_float32(images)
        # each image's own size, top and left
        draws = torch.rand(len(x), 3, device=x.device)
        rows = self._matrix(x.shape[2], draws[:, 0], draws[:, 1], x)  # [B, H, H]
        columns = self._matrix(x.shape[3], draws[:, 0], draws[:, 2], x)  # [B, W, W]
        return _in_box(torch.einsum("bih,bchw,bjw->bcij", rows, x, columns)).to(images.dtype)

    def _matrix(self, n: int, share: Tensor, place: Tensor, like: Tensor) -> Tensor:
        """How an axis of ``n`` pixels is read, ``[B, n, n]``, from draws ``[B]`` in [0, 1)."""
        least = max(1, round(self.low * n))
        most = max(least, round(self.high * n))
        # floor(u k) is below k for any float32 u below 1; floor(a + u k) may round up to a + k
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
    """Convolution with a Gaussian that is cut off and sums to 1; the gradient is its own.

    Beyond the edge the image goes on with its last pixel: a plain image stays as it is.

    Args:
        sigma: standard deviation in pixels, 0.01 to 100.
        kernel_size: odd; by default what holds three sigma on either side.
    """

    def __init__(self, sigma: float, kernel_size: int | None = None) -> None:
        super().__init__()
        self.sigma = check_number(sigma, "sigma", low=0.01, high=100)
        # -(-a // 1) rounds up
        size = 2 * int(-(-3 * sigma // 1)) + 1 if kernel_size is None else kernel_size
        if check_count(size, "kernel_size") % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {size}: it has a middle")
        self.kernel_size = size

    def defend(self, images: Tensor) -> Tensor:
        x = at_least_float32(images)
        rows, columns = (self._matrix(n, x) for n in x.shape[2:])
        return _in_box(rows @ x @ columns.mT).to(images.dtype)

    def _matrix(self, n: int, like: Tensor) -> Tensor:
        """The weights of an axis of ``n`` pixels, ``[n, n]``; a row sums to 1."""
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
    """Means of pixels in [0, 1], out of it by rounding alone: put back, all gradients kept."""
    # clamp's own would drop that of a white pixel that became 1 + 1e-7
    return straight_through(images, images.clamp(0, 1))


def _bilinear(n: int, pixel: Tensor, size: Tensor) -> Tensor:
    """Weights of ``n`` pixels in those of an axis of ``size`` pixels; zero for a pixel beyond it.

    Args:
        pixel: which ones, ``[B, K]``.
        size: ``[B, 1]``, or ``[1, 1]``.

    Returns:
        ``[B, K, n]``.
    """
    at = ((pixel + 0.5) * (n / size) - 0.5).clamp(0, n - 1)
    source = torch.arange(n, dtype=size.dtype, device=size.device)
    weights = (1 - (at[..., None] - source).abs()).clamp_min(0)
    return weights * ((pixel >= 0) & (pixel < size))[..., None]
