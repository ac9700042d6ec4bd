"""fastprompt: prompts for frozen CLIP models that withstand adversarial images."""

from .attacks import PGD, OnlinePGD
from .clip import FrozenCLIP
from .data import load_data
from .evaluation import evaluate
from .loading import load_clip
from .prompted import PromptedCLIP
from .prompts import DeepPrompts, TextContext, TokenRefiner
from .tuners.advpt import AdvPTConfig, AdvPTTuner

__all__ = [
    "PGD",
    "AdvPTConfig",
    "AdvPTTuner",
    "DeepPrompts",
    "FrozenCLIP",
    "OnlinePGD",
    "PromptedCLIP",
    "TextContext",
    "TokenRefiner",
    "evaluate",
    "load_clip",
    "load_data",
]
