"""Arguments of the registered op, in the order of its schema."""

from typing import NamedTuple

from torch import Tensor


class Start(NamedTuple):
    """Arguments of `op.random_start`; if given, ``epses`` replaces ``eps``."""

    x: Tensor
    indices: Tensor
    key: Tensor
    epses: Tensor | None
    eps: float
    lo: float
    hi: float
    one_sided: bool
