"""Read checkpoints and pickles of other libraries without executing pickled code.

Dassl's scheduler entry can contain pickled objects. Objects of the classes listed here are replaced
by placeholders; any other class is rejected.
"""

import io
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file

from .checks import check_path


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
    path = check_path(path, name)
    if not path.is_file():
        what = "is a folder; pass a file in it, such as model.pth.tar-50"
        raise FileNotFoundError(f"{name}: {path} {what if path.is_dir() else 'does not exist'}")
    if path.suffix != ".safetensors":
        check_sizes(path, name)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about its old format, which is accepted
            with _only_these():
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler can raise any error on a foreign file
        raise ValueError(f"{name}: {path} {_why(error, _is_plain_pickle(path))}") from error
    if isinstance(content, torch.Tensor):
        raise ValueError(
            f"{name}: {path} contains a bare tensor {list(content.shape)}, such as AdvPT's bank of "
            "image features, not a checkpoint; pass the file with the state_dict, such as "
            "prompt_learner/model.pth.tar-50"
        )
    if not isinstance(content, Mapping):
        raise ValueError(f"{name}: {path} contains a {type(content).__name__}, not a checkpoint")
    return content


def check_sizes(path: Path, name: str) -> None:
    """Raise ValueError if a file in torch's format declares more content than the file's size.

    torch allocates what a file declares before it reads it: a compressed archive of 3 MB can
    declare gigabytes. torch itself writes all entries uncompressed. Other errors are left to the
    reading.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            file.seek(0)
            declared = _declared_by_pickles(file)
        else:
            try:
                entries = zipfile.ZipFile(file).infolist()
            except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
                raise ValueError(f"{name}: {path} is damaged: {error}") from None
            if any(entry.filename.endswith("/constants.pkl") for entry in entries):
                raise ValueError(
                    f"{name}: {path} is a TorchScript archive, which contains code; save only the "
                    "model's state_dict"
                )
            if packed := [e for e in entries if e.compress_type != zipfile.ZIP_STORED]:
                raise ValueError(
                    f"{name}: {path} has a compressed entry {packed[0].filename!r} of "
                    f"{packed[0].file_size} bytes; torch's files are uncompressed: save it again "
                    "with torch.save"
                )
            declared = sum(entry.file_size for entry in entries)
    if declared > size:
        raise ValueError(
            f"{name}: {path} has {size} bytes, but declares {declared}; it is damaged or made to "
            "fill the memory"
        )


_INTEGERS = ("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4")
_STREAMS = 4  # of torch's old format: a magic number, the version, the machine, the content


def _declared_by_pickles(file: BinaryIO) -> int:
    """Return the number of elements of the largest tensor storage in torch's old format."""
    largest = number = 0
    # not such a file, if an error is raised: the reading refuses it
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(_STREAMS):
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name in _INTEGERS:
                    number = int(argument or 0)
                elif opcode.name == "BINPERSID":  # the number before it is a storage's size
                    largest = max(largest, number)
    return largest


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


_OLD = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)  # start of torch's old format


def _is_plain_pickle(path: Path) -> bool:
    """Return whether a file was written by pickle instead of torch."""
    with path.open("rb") as file:
        start = file.read(len(_OLD))
    return start.startswith(b"\x80") and start != _OLD


def _why(error: Exception, plain: bool) -> str:
    if named := re.search(r"\bGLOBAL ([\w.]+)", str(error)):
        return (
            f"contains a pickled {named[1].rstrip('.')}, which is never loaded or run; if you "
            'trust the file, save only its "state_dict" with the code that wrote it'
        )
    if plain:
        return (
            "is a plain pickle, such as a bank of AdvPT, which is never loaded or run; only files "
            "of torch.save and safetensors are read: if it has a state_dict, save that with "
            "torch.save"
        )
    # the text of such an error is a key of the file, or empty
    bare = isinstance(error, (LookupError, AttributeError, EOFError, AssertionError))
    why = "its content is not in torch's format" if bare else first_line(error)
    return f"is not a checkpoint or is damaged: {why}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, without torch's advice to run pickled code."""
    text = str(error).replace("WeightsUnpickler error:", "")
    lines = [line.strip() for line in text.splitlines() if "weights_only" not in line]
    return next((line[:300] for line in lines if line), type(error).__name__)


# ---- pickles of plain records ------------------------------------------------------------------


class Record:
    """Stands for an object of a foreign class and holds its attributes; runs none of its code."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


# what a pickler of protocol 2 or later writes for dicts, lists, strings, integers and plain objects
_PLAIN = frozenset(
    (
        *("PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1"),
        *("BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "EMPTY_DICT", "EMPTY_LIST"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM"),
        *("SETITEMS", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET", "GLOBAL"),
        *("STACK_GLOBAL", "NEWOBJ", "BUILD"),
    )
)
_MOST_BYTES, _MOST_OPCODES = 2**26, 2**23  # 16 shots of ImageNet take 4 MB and 200,000


def read_records(path: Path, cls: str, name: str) -> Any:
    """Read a pickle of dicts, lists, strings, integers and objects of the class ``cls``.

    The objects are returned as `Record`; nothing is imported, and no pickled code is run.

    Args:
        cls: module and name of the only class that the file may contain.
        name: the argument's name in error messages.

    Raises:
        ValueError: the file contains anything else, is too large, or is no pickle.
    """
    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise ValueError(f"{name}: {path} has {size} bytes, above the limit of {_MOST_BYTES}")
    content = path.read_bytes()
    try:
        _check_opcodes(content, cls)
        return _Records(io.BytesIO(content), cls).load()
    except Exception as error:  # the unpickler can raise any error on a foreign file
        why = first_line(error)
        if not isinstance(error, _Foreign):
            why = f"is damaged or not such a file: {why}"
        short = cls.rpartition(".")[2]
        raise ValueError(
            f"{name}: {path} {why}; only pickled {short} objects in dicts and lists are read, and "
            "nothing in the file is run"
        ) from None


class _Foreign(Exception):
    """The pickle contains what is not read."""


class _Records(pickle.Unpickler):
    def __init__(self, file: BinaryIO, cls: str) -> None:
        super().__init__(file)
        self._cls = cls

    def find_class(self, module: str, name: str) -> type[Record]:
        if f"{module}.{name}" != self._cls:
            raise _Foreign(f"contains a pickled {module}.{name}")
        return Record


def _check_opcodes(content: bytes, cls: str) -> None:
    """Raise unless all instructions are plain, before any memory is reserved for them."""
    strings: list[str] = []
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if opcode.name == "GLOBAL":
            strings.append(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            strings.append(".".join(strings[-2:]))
        elif isinstance(argument, str):
            strings = [*strings[-1:], argument]
        if "GLOBAL" in opcode.name and strings[-1] != cls:
            raise _Foreign(f"contains a pickled {strings[-1]}")
        if opcode.name not in _PLAIN:
            raise _Foreign(f"contains the pickle instruction {opcode.name}")
        # the unpickler reserves memory for the largest number
        if opcode.name == "LONG_BINPUT" and int(argument or 0) > len(content):
            raise _Foreign(f"numbers an object {argument}")
        if count > _MOST_OPCODES:
            raise _Foreign(f"has more than {_MOST_OPCODES} instructions")
