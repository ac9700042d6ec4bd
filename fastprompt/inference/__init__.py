"""Predictions for pictures without labels."""

from .predicting import Predictions, predict

__all__ = ["Predictions", "predict"]
