"""How far a long piece of work is: a bar in a terminal, a line now and then elsewhere."""

import sys
import threading
import time
from typing import Any, Self

from tqdm import tqdm

EVERY = 30.0  # seconds between two lines


class Progress:
    """A bar where standard error is a terminal; in a log file, a line every half a minute.

    The lines come from a thread of their own: one step of an attack on a large model may take
    longer than that, and what is silent looks as if it hung.

    Args:
        total: steps of the work.
        title: what is done.
        unit: of a step.
        initial: steps that were done before.
        show: False is silent everywhere.
    """

    def __init__(
        self, total: int, title: str, unit: str, *, initial: int = 0, show: bool = True
    ) -> None:
        self.total, self.title, self.unit, self.done = total, title, unit, initial
        self._note, self._began = "", time.monotonic()
        off = None if show else True
        self._bar = tqdm(total=total, initial=initial, desc=title, unit=unit, disable=off)
        self._over = threading.Event()
        self._lines: threading.Thread | None = None
        if show and self._bar.disable:
            self._lines = threading.Thread(target=self._tell, daemon=True)

    def update(self, steps: int = 1) -> None:
        """So many more steps are done."""
        self.done += steps
        self._bar.update(steps)

    def note(self, text: str) -> None:
        """What is being done, or what came of it: shown behind the steps."""
        self._note = text
        self._bar.set_postfix_str(text)

    def line(self) -> str:
        """The state in one line."""
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        steps = f"{self.done} of {self.total} {self.unit}"
        note = f"; {self._note}" if self._note else ""
        return f"{self.title}: {steps}, {minutes}:{seconds:02}{note}"

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
