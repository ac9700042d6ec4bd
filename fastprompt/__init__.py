"""fastprompt: prompts for frozen CLIP models that withstand adversarial images."""

from .attacks import APGD, PGD, AutoAttack, OnlinePGD
from .clip import FrozenCLIP
from .data import load_data
from .defences import JPEG, BitDepth, Defended, GaussianSmoothing, RandomResizePad
from .evaluation import Evaluation, evaluate
from .loading import load_clip
from .prompted import PromptedCLIP
from .prompts import DeepPrompts, PromptMixture, TextContext, TokenRefiner
from .tuners.advpt import AdvPTConfig, AdvPTTuner
from .tuners.ampt import AMPTConfig, AMPTTuner
from .tuners.apt import APTConfig, APTTuner
from .tuners.capt import CAPTConfig, CAPTTuner
from .tuners.nap import NAPConfig, NAPTuner

__all__ = [
    "APGD",
    "JPEG",
    "PGD",
    "AMPTConfig",
    "AMPTTuner",
    "APTConfig",
    "APTTuner",
    "AdvPTConfig",
    "AdvPTTuner",
    "AutoAttack",
    "BitDepth",
    "CAPTConfig",
    "CAPTTuner",
    "DeepPrompts",
    "Defended",
    "Evaluation",
    "FrozenCLIP",
    "GaussianSmoothing",
    "NAPConfig",
    "NAPTuner",
    "OnlinePGD",
    "PromptMixture",
    "PromptedCLIP",
    "RandomResizePad",
    "TextContext",
    "TokenRefiner",
    "evaluate",
    "load_clip",
    "load_data",
]
