"""Features from prompts and frozen weights: exact fast towers and plain reference towers."""

from .engines import Engine, make_image_tower, make_text_tower, resolve_precision
from .image import ImageTower
from .reference import ReferenceImageTower, ReferenceTextTower
from .text import TextPath, TextTower

__all__ = [
    "Engine",
    "ImageTower",
    "ReferenceImageTower",
    "ReferenceTextTower",
    "TextPath",
    "TextTower",
    "make_image_tower",
    "make_text_tower",
    "resolve_precision",
]
