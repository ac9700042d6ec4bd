"""Logits of AMPT's mixture of prompts, computed from Gram matrices."""

from .check import MAX_PROMPTS
from .op import Mix, MixtureGram, mixture_gram, mixture_logits

__all__ = ["MAX_PROMPTS", "Mix", "MixtureGram", "mixture_gram", "mixture_logits"]
