"""Defenses that round values, with a surrogate gradient for attacks."""

import io
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .._utils.checks import check_choice, check_count
from .._utils.dtypes import at_least_float32
from .base import Defense, straight_through
from .smooth_jpeg import smooth_jpeg


class JPEG(Defense):
    """Compresses to 8-bit JPEG and decodes; the gradient is that of a JPEG with smooth rounding.

    Guo et al., "Countering adversarial images using input transformations", ICLR 2018. Pillow
    encodes the images one by one on the CPU, with its defaults (chroma at half the resolution). For
    images on a GPU, each pass waits for copies in both directions.

    Args:
        quality: 1 to 100, libjpeg's scale.
        gradient: ``"smooth"`` backpropagates through a JPEG with differentiable rounding
            (`smooth_jpeg`); ``"identity"`` uses the straight-through gradient, as many papers do:
            attacks with it are much weaker and make JPEG look robust. The output is the same.
    """

    def __init__(
        self, quality: int = 75, *, gradient: Literal["identity", "smooth"] = "smooth"
    ) -> None:
        super().__init__()
        self.quality = check_count(quality, "quality", most=100)
        check_choice(gradient, "gradient", ("identity", "smooth"))
        self.gradient = gradient

    def defend(self, images: Tensor) -> Tensor:
        if images.shape[1] not in (1, 3):
            raise ValueError(
                f"images must have 1 or 3 channels for JPEG, got {list(images.shape)}; use another "
                "defense"
            )
        levels = at_least_float32(images.detach()) * 255
        pixels = levels.round().clamp(0, 255).to("cpu", torch.uint8).permute(0, 2, 3, 1)
        coded = np.stack([self._code(image) for image in pixels.numpy()])  # [B, H, W, C]
        decoded = torch.from_numpy(coded).permute(0, 3, 1, 2).contiguous()
        value = (decoded.to(levels.device).to(levels.dtype) / 255).to(images.dtype)
        if self.gradient == "identity" or not (torch.is_grad_enabled() and images.requires_grad):
            return straight_through(images, value)
        return straight_through(smooth_jpeg(images, self.quality), value)

    def _code(self, image: np.ndarray) -> np.ndarray:
        """Encode and decode one image, uint8 ``[H, W, C]``; a single channel is luma."""
        file = io.BytesIO()
        pixels = image[..., 0] if image.shape[2] == 1 else image
        Image.fromarray(pixels).save(file, "JPEG", quality=self.quality)
        return np.asarray(Image.open(file)).reshape(image.shape)

    def extra_repr(self) -> str:
        named = "" if self.gradient == "smooth" else f", gradient={self.gradient!r}"
        return f"quality={self.quality}{named}"


class BitDepth(Defense):
    """Rounds values to ``2**bits`` levels, with the straight-through gradient.

    Xu, Evans and Qi, "Feature squeezing", NDSS 2018: ``round(x (2^bits - 1)) / (2^bits - 1)``.

    Args:
        bits: bits per color channel, 1 to 8.
    """

    def __init__(self, bits: int = 4) -> None:
        super().__init__()
        self.bits = check_count(bits, "bits", most=8)

    def defend(self, images: Tensor) -> Tensor:
        top = 2**self.bits - 1
        value = (at_least_float32(images.detach()) * top).round().clamp(0, top) / top
        return straight_through(images, value.to(images.dtype))

    def extra_repr(self) -> str:
        return f"bits={self.bits}"
