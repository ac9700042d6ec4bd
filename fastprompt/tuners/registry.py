"""The methods by name."""

from .advpt import AdvPTTuner
from .base import Tuner

TUNERS: dict[str, type[Tuner]] = {AdvPTTuner.method: AdvPTTuner}
