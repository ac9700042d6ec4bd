"""fastprompt: robust prompt tuning for frozen CLIP models.

Each folder imports only from the folders above it in this list (``lint-imports`` checks this):

    _utils       helpers independent of CLIP           kernels  fused operations
    runners      items of work, here or on Ray
    clip         a frozen CLIP behind one interface    assets   bundled weights
    prompts      modules with trainable prompts
    towers       text and image features from prompts and frozen weights
    model        classifiers: pixels to logits
    attacks      PGD, APGD and AutoAttack on any module
    defenses     input transforms, differentiable for adaptive attacks
    data         data sets: sources, splits, few-shot subsets
    evaluation   robust accuracy and sanity checks of it
    hub          saved prompts to share: model card, Hugging Face Hub
    tuning       code that all methods share: settings, loop, attack in each step, run folders
    methods      one file per method: AdvPT, APT, AMPT, CAPT, NAP, CoOp
    interop      checkpoints of other code, exported files, transformers
    inference    predictions for pictures without labels
    report       HTML page and tables of evaluations
    protocols    plans of runs over data sets, shots and seeds
    cli          command line
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # at run time, `__getattr__` imports these names on first access
    from .attacks import APGD, PGD, AutoAttack
    from .clip import FrozenCLIP, load_clip
    from .data import load_data
    from .defenses import JPEG, BitDepth, Defended, GaussianSmoothing, RandomResizePad
    from .evaluation import Evaluation, evaluate
    from .inference import Predictions, predict
    from .interop.exporting import export
    from .methods.advpt import AdvPTConfig, AdvPTTuner
    from .methods.ampt import AMPTConfig, AMPTTuner
    from .methods.apt import APTConfig, APTTuner
    from .methods.auto import AutoTuner
    from .methods.capt import CAPTConfig, CAPTTuner
    from .methods.coop import CoOpConfig, CoOpTuner
    from .methods.nap import NAPConfig, NAPTuner
    from .model import PromptedCLIP
    from .prompts import DeepPrompts, PromptMixture, TextContext, TokenRefiner
    from .tuning.callbacks import Callback
    from .tuning.online_pgd import OnlinePGD

__version__ = "0.1.0"

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
    "AutoTuner",
    "BitDepth",
    "CAPTConfig",
    "CAPTTuner",
    "Callback",
    "CoOpConfig",
    "CoOpTuner",
    "DeepPrompts",
    "Defended",
    "Evaluation",
    "FrozenCLIP",
    "GaussianSmoothing",
    "NAPConfig",
    "NAPTuner",
    "OnlinePGD",
    "Predictions",
    "PromptMixture",
    "PromptedCLIP",
    "RandomResizePad",
    "TextContext",
    "TokenRefiner",
    "evaluate",
    "export",
    "load_clip",
    "load_data",
    "predict",
]

_HOME = {
    name: module
    for module, names in {
        "attacks": "APGD, PGD, AutoAttack",
        "clip": "FrozenCLIP, load_clip",
        "data": "load_data",
        "defenses": "JPEG, BitDepth, Defended, GaussianSmoothing, RandomResizePad",
        "evaluation": "Evaluation, evaluate",
        "inference": "Predictions, predict",
        "interop.exporting": "export",
        "methods.advpt": "AdvPTConfig, AdvPTTuner",
        "methods.ampt": "AMPTConfig, AMPTTuner",
        "methods.apt": "APTConfig, APTTuner",
        "methods.auto": "AutoTuner",
        "methods.capt": "CAPTConfig, CAPTTuner",
        "methods.coop": "CoOpConfig, CoOpTuner",
        "methods.nap": "NAPConfig, NAPTuner",
        "model": "PromptedCLIP",
        "prompts": "DeepPrompts, PromptMixture, TextContext, TokenRefiner",
        "tuning.callbacks": "Callback",
        "tuning.online_pgd": "OnlinePGD",
    }.items()
    for name in names.split(", ")
}


if not TYPE_CHECKING:  # hidden from type checkers, which would accept any name

    def __getattr__(name: str) -> Any:
        """Import a public name or a submodule on first access.

        Importing torch and open_clip takes seconds; ``fastprompt --help`` needs neither.
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
