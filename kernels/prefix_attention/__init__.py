"""Attention of packed suffixes over a shared prefix and, causally, over themselves."""

from .op import prefix_attention

__all__ = ["prefix_attention"]
