"""Checkpoints of other code, read without running any of it.

Dassl's scheduler entry can hold whole objects. What they are called is known here, and something
that does nothing takes their place; any other class is refused.
"""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


class _Ignored:
    """Takes the place of an object that is not needed: takes anything, does nothing."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _no_items(*args: object) -> dict[Any, Any]:
    """Takes the place of a ``defaultdict``, which torch makes but does not fill."""
    return {}


# what Dassl can put into its scheduler, the optimizer that this carries, and an accuracy in numpy,
# which TeCoA keeps, too
_NAMES = [f"torch.optim.lr_scheduler.{s}" for s in ("CosineAnnealingLR", "StepLR", "MultiStepLR")]
_NAMES += [f"torch.optim.{s}" for s in ("sgd.SGD", "adam.Adam", "adamw.AdamW", "rmsprop.RMSprop")]
_NAMES += ["numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype"]
_NAMES += ["builtins.dict"]  # of a defaultdict
_SAFE: list[Any] = [(_no_items, "collections.defaultdict"), *((_Ignored, s) for s in _NAMES)]


def read_checkpoint(path: Path, *, name: str) -> Mapping[Any, Any]:
    """What a checkpoint holds, with nothing in the place of schedulers and optimizers.

    torch's list of what may be unpickled is another one meanwhile: not for several threads at once.

    Args:
        path: safetensors by its suffix, else torch's own format.
        name: the argument that errors are about.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint, or one with objects of other classes.
    """
    if not path.is_file():
        what = "a folder: name a file in it, such as model.pth.tar-50"
        raise FileNotFoundError(f"{name}: {path} is {what if path.is_dir() else 'not there'}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of the old format, which is fine here
            with _only_these():
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file can make the unpickler raise anything
        raise ValueError(f"{name}: {path} {_why(error)}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{name}: {path} holds a {type(content).__name__}, no checkpoint")
    return content


@contextmanager
def _only_these() -> Iterator[None]:
    """Inside, the names above can be unpickled, and nothing that was allowed for other files."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with torch.serialization.safe_globals(_SAFE):
            yield
    finally:
        torch.serialization.add_safe_globals(before)


def _why(error: Exception) -> str:
    if named := re.search(r"\bGLOBAL ([\w.]+)", str(error)):
        return (
            f"holds an object of {named[1].rstrip('.')}, which is never made or run: where the "
            'file is trusted, save its "state_dict" alone with the code that wrote it'
        )
    return f"is no checkpoint, or damaged: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """What to quote of an error: its first line, without torch's own introduction."""
    text = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
    return (text or str(error).strip() or type(error).__name__).splitlines()[0][:300]
