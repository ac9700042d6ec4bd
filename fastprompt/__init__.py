"""fastprompt: prompts for frozen CLIP models that withstand adversarial images."""

from .attacks import PGD, OnlinePGD
from .clip import FrozenCLIP
from .data import load_data
from .evaluation import evaluate
from .loading import load_clip
from .prompted import PromptedCLIP
from .prompts import DeepPrompts, PromptMixture, TextContext, TokenRefiner
from .tuners.advpt import AdvPTConfig, AdvPTTuner
from .tuners.ampt import AMPTConfig, AMPTTuner
from .tuners.apt import APTConfig, APTTuner
from .tuners.capt import CAPTConfig, CAPTTuner
from .tuners.nap import NAPConfig, NAPTuner

__all__ = [
    "PGD",
    "AMPTConfig",
    "AMPTTuner",
    "APTConfig",
    "APTTuner",
    "AdvPTConfig",
    "AdvPTTuner",
    "CAPTConfig",
    "CAPTTuner",
    "DeepPrompts",
    "FrozenCLIP",
    "NAPConfig",
    "NAPTuner",
    "OnlinePGD",
    "PromptMixture",
    "PromptedCLIP",
    "TextContext",
    "TokenRefiner",
    "evaluate",
    "load_clip",
    "load_data",
]
