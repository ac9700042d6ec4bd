"""Locks: one process at a time writes to a folder.

A lock is one of the operating system's, taken with filelock on a hidden file. The system releases
it when its process ends, even by SIGKILL. The file stays, since a process that waits for a removed
file and one that creates it anew would both hold the lock.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from .files import is_temporary, remove_temporaries

log = logging.getLogger(__name__)

LOCK = ".lock"
_PATIENCE = 0.5  # seconds: a process that was killed just now still frees its memory


@contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Lock ``folder``, which is created; remove the temporary files of killed writes.

    A thread that holds the lock may take it again. ``name`` is the argument in error messages.

    Raises:
        BlockingIOError: another process or thread writes to the folder.
        NotADirectoryError: ``folder`` is a file.
        OSError: the folder is not writable, or its file system has no working locks.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{name}: {folder} is a file; pass a folder")
    folder.mkdir(parents=True, exist_ok=True)
    with holding(folder / LOCK, name):
        remove_temporaries(folder)
        yield


@contextmanager
def holding(path: Path, name: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock on the file ``path`` in an existing folder; the file is created.

    With ``wait``, wait for a process that holds it. Raises as `locked` does.
    """
    lock = _lock(path, shared=True)
    try:
        _acquire(lock, path, name, wait)
    except BlockingIOError:
        raise
    except OSError as error:
        raise OSError(
            error.errno,
            f"{name}: could not lock {path}: {error.strerror}; choose a folder that is writable, "
            "on a file system with file locks",
        ) from error
    try:
        if not _excludes(path):
            raise OSError(
                f"{name}: locks on {path} have no effect; choose a folder on a file system with "
                "file locks"
            )
        yield
    finally:
        lock.release()


def _acquire(lock: BaseFileLock, path: Path, name: str, wait: bool) -> None:
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        if not wait:
            raise BlockingIOError(
                f"{name}: another process is writing to {path.parent}; wait until it ends, or "
                "choose another folder"
            ) from None
        log.warning("waiting for another process, which holds %s", path)
        lock.acquire()


def _lock(path: Path, *, shared: bool) -> BaseFileLock:
    # shared: one object per path, which a thread can take again. A lock by a file's existence, to
    # which filelock can fall back, would outlive a killed process.
    place = path.parent.resolve() / path.name
    return FileLock(place, is_singleton=shared, fallback_to_soft=False)


def _excludes(path: Path) -> bool:
    """Return whether a lock that is held excludes others: on some network mounts none does."""
    other = _lock(path, shared=False)
    try:
        other.acquire(blocking=False)
    except Timeout:
        return True
    other.release()
    return False


def is_free(folder: Path, *known: str) -> bool:
    """Return whether ``folder`` is missing or holds no files but a killed start's and ``known``."""
    return not folder.exists() or all(
        path.name in (LOCK, *known) or is_temporary(path) for path in folder.iterdir()
    )
