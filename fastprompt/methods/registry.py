"""The tuner classes by method name."""

from ..tuning.tuner import Tuner
from .advpt import AdvPTTuner
from .ampt import AMPTTuner
from .apt import APTTuner
from .capt import CAPTTuner
from .coop import CoOpTuner
from .nap import NAPTuner

TUNERS: dict[str, type[Tuner]] = {
    tuner.method: tuner
    for tuner in (AdvPTTuner, APTTuner, AMPTTuner, CAPTTuner, NAPTuner, CoOpTuner)
}
