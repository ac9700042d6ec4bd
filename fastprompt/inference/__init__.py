"""Predictions for pictures without labels."""

from .predict import Predictions, predict

__all__ = ["Predictions", "predict"]
