"""What all defenses share."""

from torch import Tensor, nn


class Defense(nn.Module):
    """Images ``[B, 3, H, W]`` of any floating dtype to images of the same shape and dtype.

    Images in [0, 1] stay in [0, 1]; values are not looked at, which would wait for the device.

    Attributes:
        randomized: two passes over the same images differ, in eval mode too. The numbers come from
            torch's global generator of the images' device.

    Raises:
        ValueError, TypeError: images of another shape or dtype.
    """

    randomized: bool = False

    def forward(self, images: Tensor) -> Tensor:
        if not isinstance(images, Tensor) or not images.is_floating_point():
            got = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"images must be a floating-point tensor in [0, 1], got {got}")
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be [B, 3, H, W], got {list(images.shape)}")
        return self.defend(images) if images.numel() else images

    def defend(self, images: Tensor) -> Tensor:
        """What `forward` gives for images that are some."""
        raise NotImplementedError


def straight_through(images: Tensor, value: Tensor) -> Tensor:
    """``value``, bit for bit, with the gradient of ``images``: that of the identity."""
    # the bracket is 0; images + (value - images) would round. A NaN pixel stays one.
    return value.detach() + (images - images.detach())
