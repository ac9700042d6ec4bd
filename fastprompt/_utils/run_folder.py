"""The run folder: everything needed to repeat or resume a run, and its results.

config.json          method, settings, model, data (the arguments of load_data), versions
prompt_config.json   instead of config.json in a folder of `save_pretrained`, without this machine's
                     paths; beside it README.md, prompts.safetensors, result.json
images.json          the few-shot images: paths relative to the data set's folder
metrics.jsonl        one line per epoch
state.safetensors    the state of tuning, for --resume
prompts.safetensors  the tuned prompts
best.safetensors     the prompts of the best validation epoch, if there are validation images
last.safetensors     the prompts of the last epoch, if there are validation images
result.json          accuracies and how they were measured
progress.jsonl       the completed part of the evaluation, for --resume
examples.safetensors a few adversarial images
calibration.json     the temperature of the logits, from fastprompt evaluate --calibrate
.lock                empty; locked while a process writes to the folder
evaluations/         further evaluations from fastprompt evaluate
"""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import NoneType
from typing import Any

from torch import Tensor

from .files import (
    append_line,
    read_json,
    read_tensors,
    write_bytes,
    write_json,
    write_tensors,
)
from .locks import is_free, locked
from .versions import versions

FORMAT = 1
CONFIG, SAVED_CONFIG = "config.json", "prompt_config.json"
_CONFIG_TYPES = {"method": str, "config": dict, "classnames": list, "clip": dict}


class RunFolder:
    """Reads and writes the files of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def config_file(self) -> Path:
        """The file of the run's settings, that of a saved folder if there is only this one."""
        saved = self.path / SAVED_CONFIG
        own = self.path / CONFIG
        return saved if saved.exists() and not own.exists() else own

    @property
    def started(self) -> bool:
        """Whether the folder contains a run, or the saved prompts of one."""
        return self.config_file.exists()

    def check_free(self, name: str) -> None:
        """Raise FileExistsError if the folder contains other files; ``name`` is the argument."""
        if not is_free(self.path):
            raise FileExistsError(f"{name}: {self.path} contains other files; choose a new folder")

    def locked(self, name: str) -> AbstractContextManager[None]:
        """Return the folder's lock, see `locked`; raise as `check_free` if it has other files."""
        if not self.started:
            self.check_free(name)
        return locked(self.path, name)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write ``config.json``."""
        write_json(self.path / CONFIG, {"format": FORMAT, **config, "versions": versions()})

    def write_saved_config(self, config: Mapping[str, Any]) -> None:
        """Write ``prompt_config.json``; ``config`` has the versions of tuning."""
        write_json(self.path / SAVED_CONFIG, {"format": FORMAT, **config})

    def read_config(self) -> dict[str, Any]:
        """Read and check ``config.json``, or ``prompt_config.json`` of a saved folder.

        Raises:
            FileNotFoundError: the folder is not a run folder.
            ValueError: the file is damaged, not a run configuration, or has another format.
        """
        if not self.started:
            seeds = (self.path / "seeds.json").exists()
            more = "; it is a folder of runs: pass one of its seed-N folders" if seeds else ""
            raise FileNotFoundError(f"{self.path} is not a run folder: it has no config.json{more}")
        file = self.config_file
        config = read_json(file)
        if config.get("format") != FORMAT:
            raise ValueError(
                f"{file} has format {config.get('format')!r}, but this "
                f"version of fastprompt reads format {FORMAT}; use the version that wrote it"
            )
        for key, kind in _CONFIG_TYPES.items():
            if key not in config:
                raise self._damaged(f"no {key}")
            if not isinstance(config[key], kind):
                raise self._damaged(f"an invalid {key}")
        clip = config["clip"]
        sound = all(isinstance(clip.get(key), str) for key in ("name", "fingerprint"))
        if not sound or not isinstance(clip.get("source", 0), (dict, NoneType)):
            raise self._damaged("an invalid clip")
        if not isinstance(config.get("data", {}), (dict, NoneType)):
            raise self._damaged("an invalid data")
        return config

    def write_images(self, files: Mapping[str, Sequence[str]]) -> None:
        """Write ``images.json``: the paths of the few-shot images by split."""
        write_json(self.path / "images.json", {part: list(names) for part, names in files.items()})

    def _damaged(self, what: str) -> ValueError:
        return ValueError(f"{self.config_file} has {what}; it is damaged: restore it from a copy")

    def write_prompts(
        self, tensors: Mapping[str, Tensor], method: str, identity: str, name: str = "prompts"
    ) -> None:
        """Write ``NAME.safetensors``; ``identity`` is a key of settings, model and classes."""
        metadata = {"kind": "prompts", "method": method, "identity": identity}
        write_tensors(self.path / f"{name}.safetensors", tensors, metadata)

    def read_prompts(self, method: str, identity: str, name: str = "prompts") -> dict[str, Tensor]:
        """Read the tuned prompts of a run of ``method``.

        Raises:
            FileNotFoundError: the run has not finished tuning.
            ValueError: the file is damaged or changed, or belongs to another method or run.
        """
        path = self.path / f"{name}.safetensors"
        tensors, metadata = read_tensors(path, "prompts")
        if metadata.get("method") != method:
            raise ValueError(
                f"{path} contains prompts of {metadata.get('method')!r}, not of {method!r}; "
                "restore this run's own file"
            )
        if metadata.get("identity") != identity:
            raise ValueError(
                f"{self.path}: {path.name} and {self.config_file.name} belong to different runs, "
                f"or {self.config_file.name} was changed; restore the original files"
            )
        return tensors

    def write_state(self, tensors: Mapping[str, Tensor], epoch: int, key: str) -> None:
        """Write ``state.safetensors`` after ``epoch`` epochs; ``key`` identifies the run."""
        metadata = {"kind": "state", "epoch": str(epoch), "key": key}
        write_tensors(self.path / "state.safetensors", tensors, metadata)

    def read_state(self, key: str) -> tuple[dict[str, Tensor], int] | None:
        """Read the tuning state and the number of completed epochs; None if there is no file."""
        path = self.path / "state.safetensors"
        if not path.exists():
            return None
        tensors, metadata = read_tensors(path, "state")
        if metadata.get("key") != key:
            raise ValueError(
                f"{path} belongs to a run with different settings, model or data; restore this "
                "run's own file, or remove it to start over"
            )
        return tensors, int(metadata["epoch"])

    def write_calibration(self, found: Mapping[str, Any]) -> None:
        """Write ``calibration.json``: ``temperature``, ``n`` and ``classnames``."""
        write_json(self.path / "calibration.json", found)

    def read_calibration(self) -> dict[str, Any] | None:
        """Read ``calibration.json``; None if the run was not calibrated.

        Raises:
            ValueError: the file is damaged.
        """
        path = self.path / "calibration.json"
        if not path.exists():
            return None
        found = read_json(path)
        value = found.get("temperature")
        number = isinstance(value, int | float) and 0 < value < math.inf
        if not number or not isinstance(found.get("classnames"), list) or "n" not in found:
            raise ValueError(
                f"{path} is damaged: remove it, or run fastprompt evaluate --calibrate again"
            )
        return found

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``."""
        append_line(self.path / "metrics.jsonl", json.dumps(row))

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read ``metrics.jsonl``; lines that are damaged, as by a crash, are left out."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        rows = []
        for line in path.read_bytes().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("epoch"), int):
                rows.append(row)
        return rows

    def cut_metrics(self, epochs: int) -> list[int]:
        """Drop the lines after epoch ``epochs``, since these epochs will be run again.

        Returns:
            The epochs up to ``epochs`` that have no line.
        """
        rows = [row for row in self.read_metrics() if row["epoch"] <= epochs]
        write_bytes(
            self.path / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in rows).encode()
        )
        return sorted(set(range(1, epochs + 1)) - {row["epoch"] for row in rows})
