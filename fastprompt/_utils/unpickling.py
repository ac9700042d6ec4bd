"""Read checkpoints of other libraries without executing pickled code.

Dassl's scheduler entry can contain pickled objects. Objects of the classes listed here are replaced
by placeholders; any other class is rejected.
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
    """A placeholder for an object that is not needed; it ignores all arguments."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _no_items(*args: object) -> dict[Any, Any]:
    """A placeholder for ``defaultdict``, which torch creates but does not fill."""
    return {}


# Dassl's schedulers, the optimizers that they reference, and the numpy scalars in which Dassl and
# TeCoA store accuracies
_NAMES = [f"torch.optim.lr_scheduler.{s}" for s in ("CosineAnnealingLR", "StepLR", "MultiStepLR")]
_NAMES += [f"torch.optim.{s}" for s in ("sgd.SGD", "adam.Adam", "adamw.AdamW", "rmsprop.RMSprop")]
_NAMES += ["numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype"]
_NAMES += ["builtins.dict"]  # the factory of a defaultdict
_SAFE: list[Any] = [(_no_items, "collections.defaultdict"), *((_Ignored, s) for s in _NAMES)]


def read_checkpoint(path: Path, *, name: str) -> Mapping[Any, Any]:
    """Read a checkpoint, with placeholders instead of schedulers and optimizers.

    Temporarily replaces torch's global allow-list of classes; not thread-safe.

    Args:
        path: a file in safetensors format if its suffix is ``.safetensors``, else in torch format.
        name: the argument's name in error messages.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a checkpoint, or contains objects of other classes.
    """
    if not path.is_file():
        what = "is a folder; pass a file in it, such as model.pth.tar-50"
        raise FileNotFoundError(f"{name}: {path} {what if path.is_dir() else 'does not exist'}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about its old format, which is accepted
            with _only_these():
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler can raise any error on a foreign file
        raise ValueError(f"{name}: {path} {_why(error)}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{name}: {path} contains a {type(content).__name__}, not a checkpoint")
    return content


@contextmanager
def _only_these() -> Iterator[None]:
    """Allow only the names above to be unpickled, replacing torch's current allow-list."""
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
            f"contains a pickled {named[1].rstrip('.')}, which is never loaded or run; if you "
            'trust the file, save only its "state_dict" with the code that wrote it'
        )
    return f"is not a checkpoint or is damaged: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, without torch's introduction."""
    text = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
    return (text or str(error).strip() or type(error).__name__).splitlines()[0][:300]
