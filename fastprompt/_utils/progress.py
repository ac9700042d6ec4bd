"""Progress reports: a bar in a terminal, periodic lines elsewhere."""

import sys
import threading
import time
from typing import Any, Self

from tqdm import tqdm

from .printable import printable

EVERY = 10.0  # seconds between two lines
_OFTEN = 0.5  # seconds between two notes of passes, as a note takes longer than a small pass


def tell(text: str) -> None:
    """Print what begins, such as loading, if standard error is a terminal."""
    if sys.stderr.isatty():
        print(printable(text), file=sys.stderr, flush=True)


class Progress:
    """A progress bar if standard error is a terminal, else a line every 10 seconds.

    A separate thread prints the lines, because one step of an attack on a large model may take
    longer than 10 seconds, during which the program would appear to hang.

    Args:
        total: the total number of steps; None if it is not known.
        title: the name of the task.
        unit: the unit of a step.
        initial: the number of steps already done.
        show: whether to print anything.
    """

    def __init__(
        self, total: int | None, title: str, unit: str, *, initial: int = 0, show: bool = True
    ) -> None:
        self.total, self.title, self.unit, self.done = total, title, unit, initial
        self._note, self._began = "", time.monotonic()
        self._told, self._workers, self._initial = 0.0, "", initial
        off = None if show else True
        self._bar = tqdm(total=total, initial=initial, desc=title, unit=unit, disable=off)
        self._over = threading.Event()
        self._lines: threading.Thread | None = None
        if show and self._bar.disable:
            self._lines = threading.Thread(target=self._tell, daemon=True)

    def update(self, steps: int = 1) -> None:
        """Advance by ``steps`` steps."""
        self.done += steps
        self._bar.update(steps)

    def note(self, text: str) -> None:
        """Show ``text``, such as the current stage or result, after the step count."""
        self._note = printable(text)
        self._bar.set_postfix_str(", ".join(each for each in (self._workers, self._note) if each))

    def workers(self, number: int) -> None:
        """Show how many workers there are; lines then have the rate and the time left, too."""
        words = f"{number} worker" if number == 1 else f"{number} workers"
        if words != self._workers:
            self._workers = words
            self.note(self._note)

    def passes(self, task: str, passes: int, total: int | None = None) -> None:
        """Note now and then how many passes through a model, in images, ``task`` has taken."""
        if time.monotonic() - self._told > _OFTEN:
            self._told = time.monotonic()
            of = "" if total is None else f" of {total:,}"
            self.note(f"{task}, {passes:,}{of} passes")

    def line(self) -> str:
        """Return the current progress as one line."""
        took = time.monotonic() - self._began
        of = "" if self.total is None else f" of {self.total}"
        steps = f"{self.done}{of} {self.unit}"
        note = f"; {self._note}" if self._note else ""
        return f"{self.title}: {steps}, {_clock(took)}{self._pace(took)}{note}"

    def _pace(self, took: float) -> str:
        """Return the workers, the rate and the time left, if there are workers."""
        if not self._workers:
            return ""
        rate = (self.done - self._initial) / max(took, 1e-9)
        left = "" if self.total is None or not rate else _clock((self.total - self.done) / rate)
        return f"; {self._workers}, {rate:.1f} {self.unit}/s" + (f", {left} left" if left else "")

    def _tell(self) -> None:
        while not self._over.wait(EVERY):
            print(self.line(), file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        if self._lines is not None:
            self._lines.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        if self._lines is not None:
            self._lines.join()
        self._bar.close()


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
