"""AMPT's mixture as its formula stands, with a text feature for each image and class."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._dispatch import wide_dtype


def mixture_logits(
    image: Tensor,
    text: Tensor,
    router: Tensor,
    scale: Tensor,
    temperature: float = 1.0,
    mix: str = "normalized",
) -> tuple[Tensor, Tensor]:
    """Logits ``s f_b . m_bc / |m_bc|`` with ``m_bc = sum_k w_bk t^_kc``, and the weights ``w``.

    ``w_b = softmax(router_b / temperature)`` and ``t^_kc = t_kc / |t_kc|``, or ``t_kc`` for
    ``mix="raw"``. Adversarial mixture prompt tuning (AMPT), where each image has class features of
    its own: a tensor ``[B, C, D]``. With ``m^ = m / |m|``, the gradient in ``m_bc`` is that of the
    logit times ``s (f_b - (f_b . m^_bc) m^_bc) / |m_bc|``; `eager` has those in all inputs.

    Args:
        image: ``f``, ``[B, D]``.
        text: ``t``, ``[K, C, D]``, in whose dtype features are multiplied.
        router: ``[B, K]``.
        scale: ``s``, without dimensions.

    Returns:
        ``[B, C]`` and ``[B, K]``, float32 at least.
    """
    weights = (router.to(wide_dtype(router)) / temperature).softmax(dim=1)
    text = F.normalize(text, dim=-1) if mix == "normalized" else text
    mixed = F.normalize(torch.einsum("bk,kcd->bcd", weights.to(text.dtype), text), dim=-1)
    products = torch.einsum("bd,bcd->bc", image, mixed)
    return scale * products.to(wide_dtype(products)), weights
