"""What the pre-trainings share: loss, text encoding, optimizers, schedule."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def encode_short_text(model: Any, tokens: Tensor) -> Tensor:
    """`open_clip`'s ``encode_text``, cut after the longest caption: the mask is causal."""
    length = int((tokens != 0).sum(dim=1).max())
    tokens = tokens[:, :length]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x)[torch.arange(len(x)), tokens.argmax(dim=-1)]
    return x @ model.text_projection


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, true: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy, with every caption that is true of an image as a positive.

    ``true`` is bool ``[B, B]``, images by captions, or float for images that are mixtures. The
    targets are uniform over the positives (UniCL, Yang et al., CVPR 2022); with one positive each
    this is CLIP's own loss.
    """
    logits = scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    target = true.float()
    by_image = F.cross_entropy(logits, target / target.sum(dim=1, keepdim=True))
    by_text = F.cross_entropy(logits.T, target.T / target.T.sum(dim=1, keepdim=True))
    return (by_image + by_text) / 2


def make_optimizer(params: list[tuple[str, nn.Parameter]], lr: float) -> torch.optim.AdamW:
    """Return AdamW with decay of the matrices alone."""
    decayed = [p for name, p in params if p.ndim >= 2 and "embedding" not in name]
    rest = [p for name, p in params if p.ndim < 2 or "embedding" in name]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


def make_optimizers(
    params: list[tuple[str, nn.Parameter]], lr: float
) -> tuple[torch.optim.Optimizer, ...]:
    """Return Muon for the matrices of the blocks, and AdamW for the rest.

    Muon (Jordan et al., 2024) orthogonalizes its updates; scaled as by Liu et al. ("Muon is
    scalable for LLM training", 2025), they take AdamW's learning rate and decay.
    """
    matrices = [p for name, p in params if "resblocks" in name and p.ndim == 2]
    taken = {id(p) for p in matrices}
    rest = [(name, p) for name, p in params if id(p) not in taken]
    muon = torch.optim.Muon(matrices, lr=lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    return muon, make_optimizer(rest, lr)


def set_rate(optimizer: torch.optim.Optimizer, step: int, steps: int, lr: float) -> None:
    """Set the learning rate of a step: warm-up, then a cosine."""
    warm = min(1.0, (step + 1) / min(300, steps))
    rate = lr * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
    for group in optimizer.param_groups:
        group["lr"] = rate
