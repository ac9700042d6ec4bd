"""Arguments of the registered ops, in the order of their schemas."""

from typing import NamedTuple

from torch import Tensor


class Prompts(NamedTuple):
    """Arguments of `eager.mixture_gram`: text features ``[K, C, D]``; whether to normalize them."""

    text: Tensor
    normalized: bool


class Mixture(NamedTuple):
    """Arguments of `eager.mixture_logits`: inputs of the op, and outputs of `mixture_gram`."""

    image: Tensor
    text: Tensor
    router: Tensor
    scale: Tensor
    gram: Tensor
    inv_norm: Tensor
    temperature: float


class MixtureBackward(NamedTuple):
    """Arguments of the backward: gradients, inputs and outputs of `eager.mixture_logits`."""

    dlogits: Tensor
    dweights: Tensor | None
    image: Tensor
    text: Tensor
    router: Tensor
    scale: Tensor
    gram: Tensor
    inv_norm: Tensor
    weights: Tensor
    cosine: Tensor
    inverse: Tensor
    temperature: float
    normalized: bool
    wants_image: bool
    wants_text: bool
    wants_router: bool
    wants_scale: bool
