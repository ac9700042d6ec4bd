"""A frozen CLIP with trainable prompts, and the classifiers made from it: pixels to logits."""

from .classifier import CLIPClassifier
from .outputs import Prepared, Seen
from .prompted import PromptedCLIP

__all__ = ["CLIPClassifier", "Prepared", "PromptedCLIP", "Seen"]
