"""Pixels to logits: prompts in a frozen CLIP, and the classifiers made of them."""

from .classifier import CLIPClassifier
from .outputs import Prepared, Seen
from .prompted import PromptedCLIP

__all__ = ["CLIPClassifier", "Prepared", "PromptedCLIP", "Seen"]
