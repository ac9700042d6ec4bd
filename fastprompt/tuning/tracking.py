"""Callbacks that write each epoch's line of ``metrics.jsonl`` to an experiment tracker."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from .._utils.names import unknown
from .callbacks import Callback


class Tracker(Callback):
    """Base class of the trackers.

    Args:
        folder: run folder, whose name is that of the tracker's run.
        settings: method and settings of the run.

    Raises:
        RuntimeError: the tracker's package is not installed.
    """

    module: ClassVar[str]
    package: ClassVar[str]

    def __init__(self, folder: str | Path, settings: Mapping[str, Any] | None = None) -> None:
        raise NotImplementedError

    @classmethod
    def library(cls) -> Any:
        """Return the tracker's package; raise RuntimeError if it is not installed."""
        try:
            return importlib.import_module(cls.module)
        except ImportError as error:
            raise RuntimeError(
                f"track: {cls.package} is not installed ({error}): pip install '{cls.package}'"
            ) from error


class TensorBoard(Tracker):
    """Writes scalars into ``folder / "tensorboard"``; they have the precision of float32."""

    module, package = "torch.utils.tensorboard", "fastprompt[track]"

    def __init__(self, folder: str | Path, settings: Mapping[str, Any] | None = None) -> None:
        self.writer = self.library().SummaryWriter(str(Path(folder) / "tensorboard"))

    def on_epoch(self, tuner: Any, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            if name != "epoch":
                self.writer.add_scalar(name, value, row["epoch"])
        self.writer.flush()

    def on_end(self, tuner: Any, error: BaseException | None) -> None:
        self.writer.close()


class WandB(Tracker):
    """Writes a run of Weights & Biases; with ``WANDB_MODE=offline`` only in ``folder / "wandb"``.

    Other arguments are those of ``wandb.init``, such as ``project``.
    """

    module = package = "wandb"

    def __init__(
        self, folder: str | Path, settings: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        given = {"project": "fastprompt", "name": Path(folder).name, "dir": str(folder)} | options
        wandb = self.library()
        self.run = wandb.init(config=dict(settings or {}), reinit="create_new", **given)

    def on_epoch(self, tuner: Any, row: Mapping[str, Any]) -> None:
        self.run.log(dict(row), step=row["epoch"])

    def on_end(self, tuner: Any, error: BaseException | None) -> None:
        self.run.finish(exit_code=int(error is not None))


class MLflow(Tracker):
    """Writes a run of MLflow to ``MLFLOW_TRACKING_URI``, or where MLflow writes by default."""

    module = package = "mlflow"

    def __init__(
        self,
        folder: str | Path,
        settings: Mapping[str, Any] | None = None,
        experiment: str = "fastprompt",
    ) -> None:
        self.client = self.library().MlflowClient()
        known = self.client.get_experiment_by_name(experiment)
        number = known.experiment_id if known else self.client.create_experiment(experiment)
        self.run = self.client.create_run(number, run_name=Path(folder).name).info.run_id
        for name, value in (settings or {}).items():
            self.client.log_param(self.run, name, value)

    def on_epoch(self, tuner: Any, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            self.client.log_metric(self.run, name, value, step=row["epoch"])

    def on_end(self, tuner: Any, error: BaseException | None) -> None:
        self.client.set_terminated(self.run, "FAILED" if error else "FINISHED")


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


def with_trackers(
    callbacks: Sequence[Callback | str], folder: Path | None, settings: Mapping[str, Any]
) -> Iterator[Callback]:
    """Yield the callbacks, with names replaced by trackers of the run folder.

    Raises:
        RuntimeError: a tracker could not start; the message names it.
    """
    for one in callbacks:
        if not isinstance(one, str):
            yield one
            continue
        assert folder is not None
        try:
            tracker = TRACKERS[one](folder, settings)
        except Exception as error:  # such as no login, or no server
            raise RuntimeError(
                f"callbacks: {one} could not start ({type(error).__name__}: {error}); repair it or "
                "leave it out, and resume"
            ) from error
        yield tracker


def split_trackers(names: str | None) -> list[str]:
    """Return the names of trackers that are separated by commas; raise as `check_tracker`."""
    found = [] if names is None else [name.strip() for name in names.split(",")]
    return [check_tracker(name) for name in dict.fromkeys(found)]


def check_tracker(name: str) -> str:
    """Return the name of a tracker.

    Raises:
        ValueError: there is no such tracker; the message suggests similar names.
        RuntimeError: its package is not installed.
    """
    if name not in TRACKERS:
        raise unknown("track", name, TRACKERS)
    TRACKERS[name].library()
    return name
