"""How robust is a classifier, and what was done to find out."""

from .api import evaluate
from .result import Evaluation

__all__ = ["Evaluation", "evaluate"]
