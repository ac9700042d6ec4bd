"""Checkpoints and configurations of the original code of CoOp, AdvPT, APT, MaPLe, FAP and NAP."""

from .checkpoints import ForeignPrompts, read_prompts
from .importing import import_prompts
from .yacs import Translation, translate_yacs

__all__ = ["ForeignPrompts", "Translation", "import_prompts", "read_prompts", "translate_yacs"]
