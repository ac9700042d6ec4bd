"""Methods, attacks and data sources that other installed packages offer, as entry points."""

import logging
import re
from collections.abc import Collection
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

log = logging.getLogger(__name__)

METHODS, ATTACKS, DATA = "fastprompt.methods", "fastprompt.attacks", "fastprompt.data"
_NAME = re.compile(r"[a-z][a-z0-9_-]+")


def plugins(group: str, own: Collection[str]) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name; nothing is imported.

    A name that is in ``own``, that an earlier package has, or that does not consist of lower-case
    letters, digits, ``-`` and ``_`` is refused with a warning.
    """
    found: dict[str, EntryPoint] = {}
    # sorted: which of two packages is first must not depend on the file system
    for entry in sorted(entry_points(group=group), key=lambda e: (e.name, e.value)):
        if entry.name in own:
            warn(f"{titled(entry)} is ignored: fastprompt has its own {entry.name!r}; rename it")
        elif entry.name in found:
            if entry.value != found[entry.name].value:  # else the same package, found twice
                warn(f"{titled(entry)} is ignored: {titled(found[entry.name])} has that name")
        elif not _NAME.fullmatch(entry.name):
            warn(f"{titled(entry)} is ignored: a name has lower-case letters, digits, - and _")
        else:
            found[entry.name] = entry
    return found


def load(entry: EntryPoint) -> Any:
    """Import what an entry point names.

    Raises:
        RuntimeError: it cannot be imported, for any reason; the message names the package.
    """
    try:
        return entry.load()
    except (Exception, SystemExit) as error:  # of code that is not ours
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise RuntimeError(f"{titled(entry)} cannot be imported ({why}); repair it") from error


def titled(entry: EntryPoint) -> str:
    """Describe an entry point, with its package, for a message."""
    by = f" {entry.dist.version}" if entry.dist else ""
    package = f" of {entry.dist.name}{by}" if entry.dist else ""
    return f"the plugin {entry.name!r} ({entry.group}, {entry.value}){package}"


@cache
def warn(message: str) -> None:
    """Log a warning once."""
    log.warning(message)
