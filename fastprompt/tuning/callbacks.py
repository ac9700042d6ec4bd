"""Callbacks of `Tuner.fit`: functions of the user that the tuning loop calls."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from .._utils.checks import shown

log = logging.getLogger(__name__)


class Callback:
    """Base class of callbacks; a subclass defines some of these methods.

    Each gets the `Tuner`. An exception in one stops the run: prompts and run folder stay as after
    the last whole epoch.
    """

    def on_step(self, tuner: Any, step: int, loss: Tensor) -> None:
        """Called after each optimizer step.

        Args:
            step: number of the step, counted from 1 over all epochs.
            loss: mean loss of the step's examples, a detached scalar on the model's device.
                Reading its value waits for a GPU.
        """

    def on_epoch(self, tuner: Any, row: Mapping[str, Any]) -> None:
        """Called after each epoch, when the run folder has its line and state.

        Args:
            row: the line of ``metrics.jsonl``: ``epoch`` (from 1), ``loss``, ``lr`` and more.
        """

    def on_end(self, tuner: Any, error: BaseException | None) -> None:
        """Called once at the end, after the prompts were written.

        Args:
            error: what stopped the run, such as KeyboardInterrupt; None if it is complete.
        """


class CallbackError(RuntimeError):
    """A callback failed; the message names it."""


class Callbacks:
    """Calls the callbacks of a run, in the order given."""

    def __init__(self, tuner: Any) -> None:
        self._tuner = tuner
        self._all: list[Callback] = []

    def extend(self, callbacks: Iterable[Callback]) -> None:
        """Add callbacks one by one: an error leaves those before it, which get `on_end`."""
        for one in callbacks:
            self._all.append(one)

    def __bool__(self) -> bool:
        return bool(self._all)

    def on_step(self, step: int, loss: Tensor) -> None:
        """Call `Callback.on_step` of each."""
        self._call("on_step", step, loss)

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        """Call `Callback.on_epoch` of each."""
        self._call("on_epoch", dict(row))

    def on_end(self, error: BaseException | None) -> None:
        """Call `Callback.on_end` of each; one that fails does not keep it from the others."""
        failed: list[CallbackError] = []
        for one in self._all:
            try:
                _call_one(one, "on_end", self._tuner, error)
            except CallbackError as found:
                failed.append(found)
        for more in failed[0 if error else 1 :]:  # what stopped the run is raised instead
            log.warning("%s", more)
        if failed and error is None:
            raise failed[0]

    def _call(self, event: str, *arguments: Any) -> None:
        for one in self._all:
            _call_one(one, event, self._tuner, *arguments)


def _call_one(callback: Callback, event: str, *arguments: Any) -> None:
    try:
        getattr(callback, event)(*arguments)
    except Exception as error:
        name = f"{type(callback).__module__}.{type(callback).__qualname__}"
        raise CallbackError(
            f"callbacks: {event} of {name} raised {type(error).__name__}: {error}; the state after "
            "the last whole epoch is kept: repair the callback or leave it out, and resume"
        ) from error


def check_callbacks(callbacks: object) -> list[Callback | str]:
    """Return the callbacks as a list.

    Raises:
        TypeError: it is not a list of `Callback` objects and names of trackers.
    """
    if isinstance(callbacks, (str, Callback)) or not isinstance(callbacks, Iterable):
        raise TypeError(f"callbacks must be a list, got {shown(callbacks)}")
    found = list(callbacks)
    for one in found:
        if not isinstance(one, (Callback, str)):
            raise TypeError(
                "callbacks must be objects of subclasses of fastprompt.Callback, or names such as "
                f"'tensorboard', got {shown(one)}"
            )
    return found
