"""Files of other code: checkpoints of CoOp, AdvPT, APT, MaPLe and FAP."""

from .checkpoints import ForeignPrompts, read_prompts
from .import_prompts import import_prompts

__all__ = ["ForeignPrompts", "import_prompts", "read_prompts"]
