"""Reference implementation of AMPT's mixture, with a text feature per image and class."""

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
    ``mix="raw"``. In adversarial mixture prompt tuning (AMPT), each image has its own class
    features, a tensor ``[B, C, D]``. With ``m^ = m / |m|``, the gradient w.r.t. ``m_bc`` is that of
    the logit times ``s (f_b - (f_b . m^_bc) m^_bc) / |m_bc|``; `eager` has those of all inputs.

    Args:
        image: ``f``, ``[B, D]``.
        text: ``t``, ``[K, C, D]``; features are multiplied in its dtype.
        router: ``[B, K]``.
        scale: ``s``, 0-dimensional.

    Returns:
        ``[B, C]`` and ``[B, K]``, at least float32.
    """
    weights = (router.to(wide_dtype(router)) / temperature).softmax(dim=1)
    text = F.normalize(text, dim=-1) if mix == "normalized" else text
    mixed = F.normalize(torch.einsum("bk,kcd->bcd", weights.to(text.dtype), text), dim=-1)
    products = torch.einsum("bd,bcd->bc", image, mixed)
    return scale * products.to(wide_dtype(products)), weights
