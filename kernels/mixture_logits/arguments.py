"""What the mixture and its gradients take, in the order of the registered ops."""

from typing import NamedTuple

from torch import Tensor


class Prompts(NamedTuple):
    """`eager.mixture_gram`: text features ``[K, C, D]``, and whether they are normalized first."""

    text: Tensor
    normalized: bool


class Mixture(NamedTuple):
    """`eager.mixture_logits`: inputs as in `op.mixture_logits`, and `eager.mixture_gram`'s."""

    image: Tensor
    text: Tensor
    router: Tensor
    scale: Tensor
    gram: Tensor
    inv_norm: Tensor
    temperature: float


class MixtureBackward(NamedTuple):
    """`eager.mixture_logits_backward`: gradients, inputs and results of `eager.mixture_logits`."""

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
