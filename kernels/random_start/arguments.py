"""What the random start takes, in the order of the registered ops."""

from typing import NamedTuple

from torch import Tensor


class Start(NamedTuple):
    """`op.random_start`; ``epses``, if given, stands for ``eps``."""

    x: Tensor
    indices: Tensor
    key: Tensor
    epses: Tensor | None
    eps: float
    lo: float
    hi: float
    one_sided: bool
