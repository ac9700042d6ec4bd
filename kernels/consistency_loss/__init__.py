"""CAPT's loss: cross-entropy, and two divergences to the clean and the frozen prediction."""

from .op import consistency_loss

__all__ = ["consistency_loss"]
