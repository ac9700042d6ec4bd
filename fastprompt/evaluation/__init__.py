"""Evaluation of the robustness of image classifiers."""

from .api import evaluate
from .result import Evaluation

__all__ = ["Evaluation", "evaluate"]
