"""How robust is a classifier, and what was done to find out."""

from .robust import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
