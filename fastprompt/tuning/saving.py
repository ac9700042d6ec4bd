"""The run folder of a tuner: identity, saving, loading and resuming."""

import dataclasses
from abc import ABC
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from .._utils.checks import check_choice, check_folder, check_path, first_difference
from .._utils.distributed import processes
from .._utils.dtypes import AUTO, check_precision
from .._utils.hashing import digest, digest_json
from .._utils.run_folder import RunFolder
from .._utils.versions import versions
from ..clip.frozen import FrozenCLIP
from ..clip.load import load_clip
from ..data.dataset import ImageDataset, fingerprint
from ..hub.shared import differing
from .config import TunerConfig, as_dict, typed
from .identity import (
    EXECUTION,
    clip_of,
    identity_in,
    run_facts,
    runs_here,
)
from .init_from import start_values
from .renamed import renamed_config


class SavedTuner(ABC):
    """The part of `Tuner` that reads and writes run folders."""

    method: ClassVar[str]
    Config: ClassVar[type[TunerConfig]]
    clip: FrozenCLIP
    classnames: list[str]
    config: TunerConfig
    prompts: nn.Module
    folder: Path | None = None  # run folder of the last `fit`, or the folder that was loaded
    _given: dict[str, Any]  # precision and execution as the user gave them; None by default

    def __init__(
        self, clip: FrozenCLIP | nn.Module | str, classnames: Sequence[str], config: Any = None
    ) -> None:
        raise NotImplementedError

    def save(self, folder: str | Path, *, job: Mapping[str, Any] | None = None) -> Path:
        """Write ``config.json`` and ``prompts.safetensors`` into ``folder``.

        Args:
            job: further entries of a new ``config.json``.

        Raises:
            FileExistsError: ``folder`` contains another run or other files.
            BlockingIOError: another process is writing to ``folder``.
        """
        check_folder(folder, "folder")
        run = RunFolder(folder)
        with run.locked("folder"):
            if not run.started:
                run.check_free("folder")
                run.write_config({**self._identity(), **(job or {})})
            elif digest_json(run_facts(identity_in(run.read_config()))) != self._hash():
                raise FileExistsError(
                    f"folder: {run.path} contains another run: choose a new folder"
                )
            self._write_prompts(run)
        return run.path

    @classmethod
    def load(
        cls,
        folder: str | Path,
        clip: FrozenCLIP | nn.Module | str | None = None,
        *,
        which: Literal["prompts", "best", "last"] = "prompts",
    ) -> Self:
        """Load the tuner that `save` or a finished run wrote to ``folder``.

        Args:
            clip: the model; by default the model that ``config.json`` names is loaded.
            which: ``"prompts"`` for the prompts that the run ended with, ``"best"`` for the best on
                the validation images, ``"last"`` for those of the last epoch.

        Raises:
            FileNotFoundError: ``folder`` is not a run folder, or tuning has not finished.
            ValueError: a file is damaged or foreign, or the method or the model's weights differ.
        """
        check_choice(which, "which", ("prompts", "best", "last"))
        run = RunFolder(check_path(folder, "folder"))
        stored = run.read_config()
        config = renamed_config(stored)
        if config["method"] != cls.method:
            raise ValueError(
                f"{run.path} is a run of {config['method']!r}, not of {cls.method!r}; load it "
                "with its own method's class"
            )
        if clip is None:
            clip = clip_of(config)
        clip = clip if isinstance(clip, FrozenCLIP) else load_clip(clip)
        # use this machine's defaults for execution settings: the run may be from another one
        settings = {k: v for k, v in config["config"].items() if k not in EXECUTION}
        origin = settings.pop("init_from", None)  # not read: tuned prompts replace the initial ones
        if not runs_here(settings.get("precision", AUTO), clip):
            settings["precision"] = AUTO
        whole = cls.Config(**typed(cls.Config, settings))
        tuner = cls(clip, config["classnames"], whole)
        known = config["clip"]["fingerprint"]
        if tuner.clip.fingerprint != known:
            raise ValueError(
                f"clip: {run.path} was tuned on {config['clip']['name']} with weights "
                f"{known[:12]}…, got {tuner.clip.name} with weights "
                f"{tuner.clip.fingerprint[:12]}…{differing(stored.get('parts'), tuner.clip)}; "
                "pass the model of the run"
            )
        tuner.config = dataclasses.replace(tuner.config, init_from=origin)
        identity = digest_json(run_facts(identity_in(stored)))  # hashed with the names as stored
        tensors = run.read_prompts(cls.method, identity, which)
        tuner.prompts.load_state_dict(tensors)
        tuner.folder = run.path
        return tuner

    # ---- a run's identity and its folder ---------------------------------------------------

    def _start_values(self) -> dict[str, Tensor]:
        specific = self.classnames if self.config.class_specific else None
        origin = self.config.init_from or ""
        return start_values(origin, self.prompts, self.clip.fingerprint, specific)

    def _write_prompts(self, run: RunFolder) -> None:
        run.write_prompts(self.prompts.state_dict(), self.method, self._hash())

    def _hash(self) -> str:
        return digest_json(run_facts(self._identity()))

    def _precision_of(self, run: RunFolder | None, resume: bool) -> str:
        """Return the precision of the run to resume if the user chose none, else the tuner's."""
        if run is None or not resume or not run.started or self._given["precision"] is not None:
            return self.config.precision
        stored: str = run.read_config()["config"].get("precision", self.config.precision)
        try:
            check_precision(stored, self.clip.device)
        except ValueError as error:
            raise ValueError(
                f"resume: {run.path} was started with precision {stored!r}; {error}: resume it on "
                "a device that supports it, or start a new run"
            ) from None
        return stored

    def _key(self, train: ImageDataset, val: ImageDataset | None, precision: str) -> str:
        identity = self._identity()
        identity["config"]["precision"] = precision
        facts = [run_facts(identity), fingerprint(train), len(train)]
        if val is not None:  # validation decides which prompts are kept, and when to stop
            facts += [fingerprint(val), len(val)]
        if self.config.init_from is not None:
            facts.append(digest(self._start_values()))
        return digest_json(facts)

    def _identity(self) -> dict[str, Any]:
        """Return the facts that identify this run."""
        return {
            "method": self.method,
            "config": as_dict(self.config),
            "classnames": self.classnames,
            "clip": {
                "name": self.clip.name,
                "source": self.clip.source,
                "fingerprint": self.clip.fingerprint,
            },
        }

    def _settings(self) -> dict[str, Any]:
        """Return what processes that tune together must have in common, besides the data."""
        identity = run_facts(self._identity())
        settings = {**identity.pop("config"), "class_shards": self.config.class_shards}
        return {**versions(), **identity, **settings}

    def _open(
        self, run: RunFolder | None, key: str, resume: bool, job: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Start the run, or return the precision and execution settings of the run to resume."""
        if run is None:
            return {}
        if not run.started:
            run.check_free("out")
            facts = {"key": key, "threads": torch.get_num_threads(), **job}
            if processes() > 1:
                facts["processes"] = processes()
            run.write_config({**self._identity(), **facts})
            return {}
        if not resume:
            raise FileExistsError(
                f"out: {run.path} already contains a run: resume it, or choose a new folder"
            )
        if (stored := run.read_config())["classnames"] != self.classnames:
            raise ValueError(
                f"resume: {run.path} was started with other classes: "
                f"{first_difference(self.classnames, stored['classnames'])}; pass the same classes "
                "in the same order"
            )
        if stored.get("key") != key:
            raise ValueError(
                f"resume: {run.path} was started with other settings, another model or other data, "
                "or by an earlier version: start a new run"
            )
        # not class_shards, which follows the number of processes
        adopted = ("precision", "compile", "class_chunk")
        known = {key: stored["config"][key] for key in adopted if key in stored["config"]}
        for name, value in known.items():
            given = self._given[name]  # the current value of class_chunk may be smaller
            if given is not None and value not in (given, getattr(self.config, name)):
                raise ValueError(
                    f"{name}: {run.path} was started with {value!r}, got {given!r}: "
                    "omit this setting"
                )
        return known

    def _adopt(self, known: Mapping[str, Any]) -> None:
        """Take over settings of a resumed run, for bit-identical results."""
        if known:
            self.config = dataclasses.replace(self.config, **typed(self.Config, known))
