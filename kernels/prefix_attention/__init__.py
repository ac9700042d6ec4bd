"""Attention of packed suffixes over a shared prefix and, causally, over themselves."""

from .classes import token_classes
from .op import prefix_attention

__all__ = ["prefix_attention", "token_classes"]
