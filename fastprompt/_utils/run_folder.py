"""A run folder: all that is needed to run it again, to go on where it stopped, and what came out.

config.json          method, settings, model, data, versions
metrics.jsonl        one line an epoch
state.safetensors    where tuning stands, for --resume
prompts.safetensors  the tuned prompts
best.safetensors     the best on the validation images, if there were some
last.safetensors     those after the last epoch, likewise
result.json          accuracies, and what was done to find them
progress.jsonl       what of that was done so far, for --resume
examples.safetensors a few of the attacked images
evaluations/         further ones, from fastprompt evaluate
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .files import (
    read_json,
    read_tensors,
    write_bytes,
    write_json,
    write_tensors,
)
from .versions import versions

FORMAT = 1
_CONFIG_TYPES = {"method": str, "config": dict, "classnames": list, "clip": dict}


class RunFolder:
    """Reads and writes one run's files, each of them whole."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def started(self) -> bool:
        """Whether a run has begun here."""
        return (self.path / "config.json").exists()

    def check_free(self, name: str) -> None:
        """Raise where a new run would stand among other files; ``name`` is the argument's."""
        # a write that was killed may have left a temporary file of ours
        own = re.compile(r"\..*\.tmp")
        if self.path.exists() and not all(own.fullmatch(p.name) for p in self.path.iterdir()):
            raise FileExistsError(f"{name}: {self.path} holds other files: choose a new folder")

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write ``config.json``."""
        write_json(self.path / "config.json", {"format": FORMAT, **config, "versions": versions()})

    def read_config(self) -> dict[str, Any]:
        """``config.json``.

        Raises:
            FileNotFoundError: this is not a run folder.
            ValueError: it is damaged, foreign, or of a later format.
        """
        if not self.started:
            raise FileNotFoundError(f"{self.path} is not a run folder: it has no config.json")
        config = read_json(self.path / "config.json")
        if config.get("format") != FORMAT:
            raise ValueError(
                f"{self.path / 'config.json'} has format {config.get('format')!r}, this version of "
                f"fastprompt reads {FORMAT}"
            )
        for key, kind in _CONFIG_TYPES.items():
            if key not in config:
                raise ValueError(f"{self.path / 'config.json'} lacks {key}: damaged")
            if not isinstance(config[key], kind):
                raise ValueError(f"{self.path / 'config.json'} has a bad {key}: damaged")
        if not {"name", "source", "fingerprint"} <= set(config["clip"]):
            raise ValueError(f"{self.path / 'config.json'} has a bad clip: damaged")
        return config

    def write_prompts(
        self, tensors: Mapping[str, Tensor], method: str, identity: str, name: str = "prompts"
    ) -> None:
        """Write ``NAME.safetensors``; ``identity`` says of which settings, model and classes."""
        metadata = {"kind": "prompts", "method": method, "identity": identity}
        write_tensors(self.path / f"{name}.safetensors", tensors, metadata)

    def read_prompts(self, method: str, identity: str, name: str = "prompts") -> dict[str, Tensor]:
        """The tuned prompts of a run of ``method``.

        Raises:
            FileNotFoundError: the run has not finished tuning.
            ValueError: damaged, foreign, changed, or another method's.
        """
        path = self.path / f"{name}.safetensors"
        tensors, metadata = read_tensors(path, "prompts")
        if metadata.get("method") != method:
            raise ValueError(
                f"{path} holds prompts of {metadata.get('method')!r}, not of {method!r}"
            )
        if metadata.get("identity") != identity:
            raise ValueError(
                f"{self.path}: {path.name} and config.json are of different runs, or config.json "
                "was changed"
            )
        return tensors

    def write_state(self, tensors: Mapping[str, Tensor], epoch: int, key: str) -> None:
        """Write ``state.safetensors``: ``epoch`` epochs are done; ``key`` says of which run."""
        metadata = {"kind": "state", "epoch": str(epoch), "key": key}
        write_tensors(self.path / "state.safetensors", tensors, metadata)

    def read_state(self, key: str) -> tuple[dict[str, Tensor], int] | None:
        """Where tuning stands and how many epochs are done; None before the first."""
        path = self.path / "state.safetensors"
        if not path.exists():
            return None
        tensors, metadata = read_tensors(path, "state")
        if metadata.get("key") != key:
            raise ValueError(f"{path} is of another run: its settings, model or data differ")
        return tensors, int(metadata["epoch"])

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add a line to ``metrics.jsonl``."""
        path = self.path / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(error.errno, f"could not write {path}: {error.strerror}") from error

    def read_metrics(self) -> list[dict[str, Any]]:
        """The whole lines of ``metrics.jsonl``; one cut short by a crash is left out."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        rows = []
        for line in path.read_bytes().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                break
            if not isinstance(row, dict) or not isinstance(row.get("epoch"), int):
                break
            rows.append(row)
        return rows

    def cut_metrics(self, epochs: int) -> None:
        """Drop the lines of epochs after the first ``epochs``: they will be run again."""
        rows = [row for row in self.read_metrics() if row["epoch"] <= epochs]
        write_bytes(
            self.path / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in rows).encode()
        )
