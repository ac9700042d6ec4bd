"""Launchers of the kernels of CAPT's loss: memory formats, grids and outputs."""

import torch
import triton
from torch import Tensor

from .arguments import Loss, LossBackward
from .eager import STATISTICS
from .kernel import _consistency_loss_backward_kernel, _consistency_loss_kernel

_MAX_BLOCK = 2048
_BLOCK_GRADIENT = 1024


def _dense_rows(*logits: Tensor) -> list[Tensor]:
    """Return tensors whose rows are contiguous, copied if needed; any row stride is allowed."""
    return [t if t.stride(1) == 1 else t.contiguous() for t in logits]


def _aligned(*logits: Tensor) -> bool:
    """Return whether every row starts at a multiple of 8 entries, that is, of at least 16 bytes."""
    return all(n % 8 == 0 for t in logits for n in (t.stride(0), t.shape[1]))


def launch_consistency_loss(given: Loss) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the kernel of `eager.consistency_loss`."""
    adv, clean, frozen = given[:3]
    rows, classes = adv.shape
    loss = torch.empty(rows, dtype=torch.float32, device=adv.device)
    terms = torch.empty(rows, 3, dtype=torch.float32, device=adv.device)
    statistics = torch.empty(rows, STATISTICS, dtype=torch.float32, device=adv.device)
    if not rows:
        return loss, terms, statistics
    adv, clean, frozen = _dense_rows(adv, clean, frozen)
    block = min(_MAX_BLOCK, max(32, triton.next_power_of_2(classes)))
    _consistency_loss_kernel[(rows,)](
        adv,
        clean,
        frozen,
        given.labels.contiguous(),
        given.alphas,
        given.lams,
        loss,
        terms,
        statistics,
        given.alpha,
        given.lam,
        classes,
        adv.stride(0),
        clean.stride(0),
        frozen.stride(0),
        CE_CLEAN=given.ce_clean,
        TRAIN_REVERSED=given.train_reversed,
        FROZEN_REVERSED=given.frozen_reversed,
        STATISTICS=STATISTICS,
        ALIGNED=_aligned(adv, clean, frozen),
        BLOCK=block,
        num_warps=max(1, block // 256),
        enable_fp_fusion=True,  # the default differs between Triton versions
    )
    return loss, terms, statistics


def launch_consistency_loss_backward(given: LossBackward) -> list[Tensor]:
    """Launch the kernel of `eager.consistency_loss_backward`."""
    adv, clean, frozen = given[1:4]
    rows, classes = adv.shape
    logits = (adv, clean, frozen)
    places = [
        torch.empty(rows, classes, dtype=t.dtype, device=t.device) if want else None
        for t, want in zip(logits, given.wanted, strict=True)
    ]
    found = [place for place in places if place is not None]
    if not rows or not found:
        return found
    adv, clean, frozen = _dense_rows(*logits)
    chunks = triton.cdiv(classes, _BLOCK_GRADIENT)
    _consistency_loss_backward_kernel[(rows * chunks,)](
        given.grad.contiguous(),
        adv,
        clean,
        frozen,
        given.labels.contiguous(),
        given.statistics,
        *places,
        classes,
        chunks,
        adv.stride(0),
        clean.stride(0),
        frozen.stride(0),
        CE_CLEAN=given.ce_clean,
        TRAIN_REVERSED=given.train_reversed,
        FROZEN_REVERSED=given.frozen_reversed,
        DETACH=given.detach_targets,
        STATISTICS=STATISTICS,
        ALIGNED=_aligned(adv, clean, frozen),
        BLOCK=_BLOCK_GRADIENT,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return found
