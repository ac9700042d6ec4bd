"""Reference implementation of NAP's feature term, for tests and benchmarks."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .._dispatch import wide_dtype


def layer_consistency(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Return ``sum_l (1 - a_l . b_l / (|a_l| |b_l|))`` of each sample, ``[B]``.

    The feature term of NAP (Neural Augmented Prompt Tuning). The cosine of a zero vector is 0. With
    unit vectors ``a^`` and ``b^``, the gradient w.r.t. ``a_l`` is ``(cos a^_l - b^_l) / |a_l|``;
    w.r.t. ``b_l``, it is the same with the two exchanged.

    Args:
        a, b: features of the layers, ``[B, ...]`` each, flattened to a vector for each sample;
            computed in at least float32.
    """
    pairs = zip(a, b, strict=True)
    distances = [1 - F.cosine_similarity(_flat(x), _flat(y)) for x, y in pairs]
    return torch.stack(distances).sum(dim=0)


def _flat(features: Tensor) -> Tensor:
    return features.to(wide_dtype(features)).flatten(1)
