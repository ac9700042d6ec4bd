"""Logits of AMPT's mixture of prompts, computed from Gram matrices."""

from .op import Mix, MixtureGram, mixture_gram, mixture_logits

__all__ = ["Mix", "MixtureGram", "mixture_gram", "mixture_logits"]
