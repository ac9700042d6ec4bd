"""NAP's feature term: cosine distance of two towers' tokens, summed over the layers."""

from .op import layer_consistency

__all__ = ["layer_consistency"]
