"""Launchers of the step kernels: memory formats, grids and outputs."""

import torch
import triton
from torch import Tensor

from .arguments import Step, TwoPointStep
from .kernel import _apgd_step_kernel, _pgd_step_kernel
from .memory_format import output_format

_BLOCK = 2048
_LAUNCH = {"num_warps": 4, "enable_fp_fusion": False}


def _rows(images: Tensor) -> tuple[int, int]:
    """Return the number of entries per image and the number of programs per image."""
    n = images[0].numel()
    return n, triton.cdiv(n, _BLOCK)


def _dense(like: Tensor, *tensors: Tensor) -> list[Tensor]:
    """Return tensors in the memory format in which ``like`` is written, copied if needed."""
    memory_format = output_format(like)
    return [t.contiguous(memory_format=memory_format) for t in tensors]


def launch_pgd_step(step: Step) -> Tensor:
    """Launch the kernel of `eager.pgd_step`."""
    out = torch.empty_like(step.x_adv, memory_format=output_format(step.x_adv))
    _write_pgd_step(out, step)
    return out


def launch_pgd_step_(step: Step) -> None:
    """Launch the kernel of `eager.pgd_step_`."""
    (out,) = _dense(step.x_adv, step.x_adv)
    _write_pgd_step(out, step._replace(x_adv=out))
    if out is not step.x_adv:
        step.x_adv.copy_(out)


def _write_pgd_step(out: Tensor, step: Step) -> None:
    """Write the step to ``out``, which is dense and may be ``x_adv``."""
    if not out.numel():
        return
    n, chunks = _rows(out)
    _pgd_step_kernel[(len(out) * chunks,)](
        *_dense(out, step.x_adv, step.x, step.grad),
        out,
        step.alphas,
        step.epses,
        step.counts,
        step.alpha,
        step.eps,
        step.lo,
        step.hi,
        n,
        chunks,
        TARGETED=step.targeted,
        BLOCK=_BLOCK,
        **_LAUNCH,
    )


def launch_apgd_step(step: TwoPointStep) -> Tensor:
    """Launch the kernel of `eager.apgd_step`."""
    out = torch.empty_like(step.x_adv, memory_format=output_format(step.x_adv))
    if not out.numel():
        return out
    n, chunks = _rows(out)
    _apgd_step_kernel[(len(out) * chunks,)](
        *_dense(out, step.x_adv, step.x_prev, step.x, step.grad),
        out,
        step.alphas,
        step.epses,
        step.counts,
        step.alpha,
        step.eps,
        step.momentum,
        1 - step.momentum,
        step.lo,
        step.hi,
        n,
        chunks,
        TARGETED=step.targeted,
        BLOCK=_BLOCK,
        **_LAUNCH,
    )
    return out
