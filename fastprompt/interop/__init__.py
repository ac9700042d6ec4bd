"""Checkpoints of CoOp, AdvPT, APT, MaPLe, FAP and NAP; files and models for other code."""

from .checkpoints import ForeignPrompts, read_prompts
from .exporting import export
from .importing import import_prompts
from .to_transformers import InTransformers, to_transformers
from .yacs import Translation, translate_yacs

__all__ = [
    "ForeignPrompts",
    "InTransformers",
    "Translation",
    "export",
    "import_prompts",
    "read_prompts",
    "to_transformers",
    "translate_yacs",
]
