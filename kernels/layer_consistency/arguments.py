"""What the distance and its gradients take, in the order of the registered ops."""

from typing import NamedTuple

from torch import Tensor


class Layers(NamedTuple):
    """`eager.layer_consistency`: one layer after the other, sample r % samples in row r."""

    a: list[Tensor]
    b: list[Tensor]
    samples: int


class LayersBackward(NamedTuple):
    """`eager.layer_consistency_backward`.

    Attributes:
        grad: of the sums, ``[B]``.
        norms: `eager.layer_consistency`'s second result.
        a, b: its inputs.
        wanted: whether there is to be a gradient, for each a, then for each b.
    """

    grad: Tensor
    norms: Tensor
    a: list[Tensor]
    b: list[Tensor]
    wanted: list[bool]
