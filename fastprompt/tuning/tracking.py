"""TensorBoard curves of a run, in addition to its ``metrics.jsonl``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Tracker:
    """Writes each epoch's metrics as scalars into ``folder / "tensorboard"``.

    Raises:
        RuntimeError: tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise RuntimeError(
                f"track needs tensorboard ({error}): pip install 'fastprompt[track]'"
            ) from error
        self.writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def add(self, row: Mapping[str, Any]) -> None:
        """Write the metrics of one epoch."""
        for name, value in row.items():
            if name != "epoch":
                self.writer.add_scalar(name, value, row["epoch"])
        self.writer.flush()
