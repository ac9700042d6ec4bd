"""fastprompt: prompts for frozen CLIP models that withstand adversarial images."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for others, names are imported when they are asked for: see `__getattr__`
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

_HOME = {
    name: module
    for module, names in {
        "attacks": "APGD, PGD, AutoAttack, OnlinePGD",
        "clip": "FrozenCLIP",
        "data": "load_data",
        "defences": "JPEG, BitDepth, Defended, GaussianSmoothing, RandomResizePad",
        "evaluation": "Evaluation, evaluate",
        "loading": "load_clip",
        "prompted": "PromptedCLIP",
        "prompts": "DeepPrompts, PromptMixture, TextContext, TokenRefiner",
        "tuners.advpt": "AdvPTConfig, AdvPTTuner",
        "tuners.ampt": "AMPTConfig, AMPTTuner",
        "tuners.apt": "APTConfig, APTTuner",
        "tuners.capt": "CAPTConfig, CAPTTuner",
        "tuners.nap": "NAPConfig, NAPTuner",
    }.items()
    for name in names.split(", ")
}


if not TYPE_CHECKING:  # to a type checker every name would be there

    def __getattr__(name: str) -> Any:
        """Import a public name, or a module of the package, when it is first asked for.

        torch and open_clip take seconds to import: ``fastprompt --help`` does without.
        """
        if name in _HOME:
            value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
            globals()[name] = value
            return value
        if not name.startswith("_"):
            try:
                return importlib.import_module(f".{name}", __name__)
            except ModuleNotFoundError as error:
                if error.name != f"{__name__}.{name}":
                    raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
