"""Prompts and frozen weights to features: the fast exact way, and the plain way."""

from .image import ImageTower
from .reference import ReferenceImageTower, ReferenceTextTower
from .text import TextTower

__all__ = ["ImageTower", "ReferenceImageTower", "ReferenceTextTower", "TextTower"]
