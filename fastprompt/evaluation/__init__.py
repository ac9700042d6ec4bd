"""How robust is a classifier, and what was done to find out."""

from .result import Evaluation
from .robust import evaluate

__all__ = ["Evaluation", "evaluate"]
