"""Text for terminals: control characters are shown as escapes such as ``\\x1b``."""

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

# C0, DEL and C1; line separators; bidirectional embeddings, overrides and isolates, which reorder
# the text around them; lone surrogates, which can't be encoded
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, keep: str = "") -> str:
    r"""Return ``text`` with its control characters, except those in ``keep``, as escapes.

    Names from a file of unknown origin could otherwise move the cursor, recolor or overwrite other
    lines, or add lines: ``"\x1b[2J"`` becomes ``"\\x1b[2J"``.
    """
    return _CONTROL.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


class _Stream:
    """A text stream that writes `printable` text and passes everything else on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        # progress bars, such as those of a download, return to the start of their line
        start = "\r" if text.startswith("\r") else ""
        self._stream.write(start + printable(text[len(start) :], keep="\n\t"))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def printable_output() -> Iterator[None]:
    """Within this context, standard output and standard error show control characters."""
    out, err = (cast(TextIO, _Stream(stream)) for stream in (sys.stdout, sys.stderr))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield
