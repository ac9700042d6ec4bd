"""The formula in plain tensor code: what runs on the CPU."""

from torch import Tensor


def pgd_step(
    x_adv: Tensor, x: Tensor, grad: Tensor, alpha: float, eps: float, lo: float, hi: float
) -> Tensor:
    """``clip(x + clip(x_adv + alpha * sign(grad) - x, -eps, eps), lo, hi)``; shapes all alike.

    A NaN in ``grad`` stands still: `torch.sign` gives 0 for it.
    """
    moved = x_adv + alpha * grad.sign().to(x_adv.dtype)
    return (x + (moved - x).clamp_(-eps, eps)).clamp_(lo, hi)


def count_gradients(grad: Tensor) -> Tensor:
    """How many entries of each image's gradient are zero, and non-finite: int64 ``[B, 2]``."""
    per_image = grad.flatten(1)
    zero = (per_image == 0).sum(dim=1)
    finite = per_image.isfinite().sum(dim=1)
    counts = zero.new_empty(len(grad), 2)
    counts[:, 0] = zero
    counts[:, 1] = per_image.shape[1] - finite
    return counts
