"""Base class of the defenses."""

from torch import Tensor, nn


class Defense(nn.Module):
    """Maps images ``[B, C, H, W]`` of any floating dtype to images of the same shape and dtype.

    Images in [0, 1] stay in [0, 1]. Values are not checked, to avoid a device synchronization.

    Attributes:
        randomized: whether two passes over the same images differ, also in eval mode. Random
            numbers come from torch's global generator of the images' device.

    Raises:
        ValueError, TypeError: images have a wrong shape or dtype.
    """

    randomized: bool = False

    def forward(self, images: Tensor) -> Tensor:
        if not isinstance(images, Tensor) or not images.is_floating_point():
            got = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"images must be a floating-point tensor in [0, 1], got {got}")
        if images.ndim != 4:
            raise ValueError(f"images must be [B, C, H, W], got {list(images.shape)}")
        return self.defend(images) if images.numel() else images

    def defend(self, images: Tensor) -> Tensor:
        """Transform a non-empty batch of images; `forward` calls it."""
        raise NotImplementedError


def straight_through(images: Tensor, value: Tensor) -> Tensor:
    """Return ``value`` exactly, with the identity's gradient with respect to ``images``."""
    # the bracket is 0, whereas images + (value - images) would round; NaN pixels stay NaN
    return value.detach() + (images - images.detach())
