"""Fused operations used by the towers and attacks, each with a plain PyTorch implementation."""

from .consistency_loss import consistency_loss
from .layer_consistency import layer_consistency
from .mixture_logits import MixtureGram, mixture_gram, mixture_logits
from .pgd_step import apgd_step, pgd_step, pgd_step_
from .prefix_attention import prefix_attention, token_classes
from .random_start import random_start

__all__ = [
    "MixtureGram",
    "apgd_step",
    "consistency_loss",
    "layer_consistency",
    "mixture_gram",
    "mixture_logits",
    "pgd_step",
    "pgd_step_",
    "prefix_attention",
    "random_start",
    "token_classes",
]
