"""What the steps take, in the order of the registered ops."""

from typing import NamedTuple

from torch import Tensor


class Step(NamedTuple):
    """`op.pgd_step`; ``alphas`` and ``epses``, if given, stand for ``alpha`` and ``eps``."""

    x_adv: Tensor
    x: Tensor
    grad: Tensor
    alphas: Tensor | None
    epses: Tensor | None
    alpha: float
    eps: float
    lo: float
    hi: float
    targeted: bool
    counts: Tensor | None


class TwoPointStep(NamedTuple):
    """`op.apgd_step`, likewise."""

    x_adv: Tensor
    x_prev: Tensor
    x: Tensor
    grad: Tensor
    alphas: Tensor | None
    epses: Tensor | None
    alpha: float
    eps: float
    momentum: float
    lo: float
    hi: float
    targeted: bool
    counts: Tensor | None
