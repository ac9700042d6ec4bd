"""How the step kernels are started: memory formats, grids, outputs."""

from typing import Any

import torch
import triton
from torch import Tensor

from .kernel import _apgd_step_kernel, _pgd_step_kernel
from .memory_format import output_format

_BLOCK = 2048
_LAUNCH = {"num_warps": 4, "enable_fp_fusion": False}


def _rows(x_adv: Tensor) -> tuple[int, int]:
    """Entries of an image, and programs that share one."""
    n = x_adv[0].numel() if len(x_adv) else 0
    return n, triton.cdiv(n, _BLOCK)


def _dense(like: Tensor, *tensors: Tensor) -> list[Tensor]:
    """In the memory format in which ``like`` is written; copied where they are not."""
    memory_format = output_format(like)
    return [t.contiguous(memory_format=memory_format) for t in tensors]


def launch_pgd_step(x_adv: Tensor, *arguments: Any) -> Tensor:
    """`eager.pgd_step`."""
    out = torch.empty_like(x_adv, memory_format=output_format(x_adv))
    _write_pgd_step(out, x_adv, *arguments)
    return out


def launch_pgd_step_(x_adv: Tensor, *arguments: Any) -> None:
    """`eager.pgd_step_`."""
    (out,) = _dense(x_adv, x_adv)
    _write_pgd_step(out, out, *arguments)
    if out is not x_adv:
        x_adv.copy_(out)


def _write_pgd_step(
    out: Tensor,
    x_adv: Tensor,
    x: Tensor,
    grad: Tensor,
    alphas: Tensor | None,
    epses: Tensor | None,
    alpha: float,
    eps: float,
    lo: float,
    hi: float,
    targeted: bool,
    counts: Tensor | None,
) -> None:
    """``out`` is dense, and may be ``x_adv``."""
    n, chunks = _rows(out)
    if not out.numel():
        return
    _pgd_step_kernel[(len(out) * chunks,)](
        *_dense(out, x_adv, x, grad),
        out,
        alphas,
        epses,
        counts,
        alpha,
        eps,
        lo,
        hi,
        n,
        chunks,
        TARGETED=targeted,
        BLOCK=_BLOCK,
        **_LAUNCH,
    )


def launch_apgd_step(
    x_adv: Tensor,
    x_prev: Tensor,
    x: Tensor,
    grad: Tensor,
    alphas: Tensor | None,
    epses: Tensor | None,
    alpha: float,
    eps: float,
    momentum: float,
    lo: float,
    hi: float,
    targeted: bool,
    counts: Tensor | None,
) -> Tensor:
    """`eager.apgd_step`."""
    out = torch.empty_like(x_adv, memory_format=output_format(x_adv))
    n, chunks = _rows(out)
    if not out.numel():
        return out
    _apgd_step_kernel[(len(out) * chunks,)](
        *_dense(x_adv, x_adv, x_prev, x, grad),
        out,
        alphas,
        epses,
        counts,
        alpha,
        eps,
        momentum,
        1 - momentum,
        lo,
        hi,
        n,
        chunks,
        TARGETED=targeted,
        BLOCK=_BLOCK,
        **_LAUNCH,
    )
    return out
