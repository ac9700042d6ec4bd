"""`AutoTuner`: load the tuner of any method."""

from pathlib import Path
from typing import Any

from torch import nn

from .._utils.names import unknown
from .._utils.run_folder import RunFolder
from ..clip.frozen import FrozenCLIP
from ..hub.remote import fetch
from ..tuning.tuner import Tuner
from .registry import TUNERS


class AutoTuner:
    """Loads the tuner of the method that a folder names; it is not created itself."""

    def __init__(self) -> None:
        raise RuntimeError("AutoTuner is not created: call AutoTuner.load or from_pretrained")

    @staticmethod
    def load(
        folder: str | Path, clip: FrozenCLIP | nn.Module | str | None = None, **options: Any
    ) -> Tuner:
        """Load the tuner in a run folder or a saved folder; see `Tuner.load`.

        Raises:
            ValueError: the method is not known, or as `Tuner.load`.
        """
        method = RunFolder(folder).read_config()["method"]
        if method not in TUNERS:
            raise unknown("method", method, TUNERS)
        return TUNERS[method].load(folder, clip, **options)

    @staticmethod
    def from_pretrained(
        name: str | Path, clip: FrozenCLIP | nn.Module | str | None = None, **options: Any
    ) -> Tuner:
        """Load the tuner in a folder or a repository of the Hub; see `Tuner.from_pretrained`."""
        return AutoTuner.load(fetch(name, **options), clip)
