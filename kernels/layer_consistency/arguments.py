"""Arguments of the registered ops, in the order of their schemas."""

from typing import NamedTuple

from torch import Tensor


class Layers(NamedTuple):
    """Arguments of `eager.layer_consistency`, ordered by layer; row r is sample r % samples."""

    a: list[Tensor]
    b: list[Tensor]
    samples: int


class LayersBackward(NamedTuple):
    """Arguments of `eager.layer_consistency_backward`.

    Attributes:
        grad: gradient of the sums, ``[B]``.
        norms: second output of `eager.layer_consistency`.
        a, b: inputs of `eager.layer_consistency`.
        wanted: whether to compute the gradient of each a, then of each b.
    """

    grad: Tensor
    norms: Tensor
    a: list[Tensor]
    b: list[Tensor]
    wanted: list[bool]
