"""CAPT's loss: cross-entropy plus KL divergences to the clean and the frozen predictions."""

from .op import consistency_loss

__all__ = ["consistency_loss"]
