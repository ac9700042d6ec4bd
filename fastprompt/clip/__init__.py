"""A frozen CLIP, whatever its architecture, behind one interface."""

from .frozen import TEMPLATES, FrozenCLIP
from .load import load_clip

__all__ = ["TEMPLATES", "FrozenCLIP", "load_clip"]
