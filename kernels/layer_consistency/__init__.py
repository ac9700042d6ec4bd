"""NAP's feature term: cosine distance between two towers' tokens, summed over layers."""

from .op import layer_consistency

__all__ = ["layer_consistency"]
