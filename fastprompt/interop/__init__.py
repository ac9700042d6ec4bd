"""Import of checkpoints from the original code of CoOp, AdvPT, APT, MaPLe, FAP and NAP."""

from .checkpoints import ForeignPrompts, read_prompts
from .importing import import_prompts

__all__ = ["ForeignPrompts", "import_prompts", "read_prompts"]
