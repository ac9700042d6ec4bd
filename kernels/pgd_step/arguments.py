"""Arguments of the registered ops, in the order of their schemas."""

from typing import NamedTuple

from torch import Tensor


class Step(NamedTuple):
    """Arguments of `op.pgd_step`; if given, ``alphas``, ``epses`` replace ``alpha``, ``eps``."""

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
    """Arguments of `op.apgd_step`, likewise."""

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
