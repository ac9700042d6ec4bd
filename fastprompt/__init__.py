"""fastprompt: prompts for frozen CLIP models that withstand adversarial images."""

from .attacks import PGD
from .clip import FrozenCLIP
from .data import load_data
from .evaluation import evaluate
from .loading import load_clip
from .tuners.advpt import AdvPTConfig, AdvPTTuner

__all__ = ["PGD", "AdvPTConfig", "AdvPTTuner", "FrozenCLIP", "evaluate", "load_clip", "load_data"]
