"""Logits of AMPT's mixture of prompts, from Gram matrices."""

from .op import MixtureGram, mixture_gram, mixture_logits

__all__ = ["MixtureGram", "mixture_gram", "mixture_logits"]
