"""The tuner classes by method name: our own, and those of other packages."""

import inspect
from importlib.metadata import EntryPoint

from .._utils import plugins
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


def add_plugins() -> None:
    """Add the methods of other packages; one that is broken is named in a warning and left out."""
    for name, entry in plugins.plugins(plugins.METHODS, TUNERS).items():
        try:
            TUNERS[name] = _loaded(entry)
        except RuntimeError as error:
            plugins.warn(f"{error}; the other methods work")


def _loaded(entry: EntryPoint) -> type[Tuner]:
    tuner = plugins.load(entry)
    title = plugins.titled(entry)
    if not (inspect.isclass(tuner) and issubclass(tuner, Tuner)):
        raise RuntimeError(f"{title} must be a subclass of Tuner, got {tuner!r}")
    for name in ("Config", "score"):
        if not hasattr(tuner, name):
            raise RuntimeError(f"{title} does not define {name}")
    if inspect.isabstract(tuner):
        missing = ", ".join(sorted(tuner.__abstractmethods__))
        raise RuntimeError(f"{title} does not define {missing}")
    if getattr(tuner, "method", None) != entry.name:
        raise RuntimeError(
            f"{title} must have the entry point's name as its method, got "
            f"{getattr(tuner, 'method', None)!r}"
        )
    return tuner


add_plugins()
