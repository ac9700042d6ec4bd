"""`FrozenCLIP`: one interface to frozen CLIP models of any architecture."""

from .frozen import TEMPLATES, FrozenCLIP
from .load import load_clip

__all__ = ["TEMPLATES", "FrozenCLIP", "load_clip"]
