"""A tuner's run folder: what says which run it is, saving, loading, and going on."""

import dataclasses
from abc import ABC
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from .._utils.checks import some
from .._utils.hashing import digest, digest_json
from .._utils.run_folder import RunFolder
from ..clip.frozen import FrozenCLIP
from ..clip.load import load_clip
from ..data.dataset import ImageDataset, fingerprint
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
    """The part of a tuner that reads and writes folders; `Tuner` is the whole."""

    method: ClassVar[str]
    Config: ClassVar[type[TunerConfig]]
    clip: FrozenCLIP
    classnames: list[str]
    config: TunerConfig
    prompts: nn.Module
    _given: dict[str, Any]  # how the run is executed, as far as the user said

    def __init__(
        self, clip: FrozenCLIP | nn.Module | str, classnames: Sequence[str], config: Any = None
    ) -> None:
        raise NotImplementedError

    def save(self, folder: str | Path, *, job: Mapping[str, Any] | None = None) -> Path:
        """Write ``config.json`` and ``prompts.safetensors`` into ``folder``.

        Args:
            job: what else a new ``config.json`` should hold.

        Raises:
            FileExistsError: ``folder`` holds another run, or other files.
        """
        run = RunFolder(folder)
        if not run.started:
            run.check_free("folder")
            run.write_config({**self._identity(), **(job or {})})
        elif digest_json(run_facts(identity_in(run.read_config()))) != self._hash():
            raise FileExistsError(f"folder: {run.path} holds another run: choose a new folder")
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
        """The tuner that `save` or a finished run left in ``folder``.

        Args:
            clip: the model; by default it is loaded again from what ``config.json`` says.
            which: the prompts that the run ended with, the best on its validation images, or the
                last.

        Raises:
            FileNotFoundError: no run folder, or tuning has not finished.
            ValueError: damaged or foreign files, another method, or another model's weights.
        """
        run = RunFolder(folder)
        stored = run.read_config()
        config = renamed_config(stored)
        if config["method"] != cls.method:
            raise ValueError(f"{run.path} is a run of {config['method']!r}, not of {cls.method!r}")
        if clip is None:
            clip = clip_of(config)
        clip = clip if isinstance(clip, FrozenCLIP) else load_clip(clip)
        # how it was executed was for another machine, perhaps: this one's defaults are taken
        settings = {k: v for k, v in config["config"].items() if k not in EXECUTION}
        origin = settings.pop("init_from", None)  # its values were replaced by tuned ones
        if not runs_here(settings.get("precision"), clip):
            settings["precision"] = None
        whole = cls.Config(**typed(cls.Config, settings))
        tuner = cls(clip, config["classnames"], whole)
        known = config["clip"]["fingerprint"]
        if tuner.clip.fingerprint != known:
            raise ValueError(
                f"clip: {run.path} was tuned on {config['clip']['name']} with weights "
                f"{known[:12]}…, this model's are {tuner.clip.fingerprint[:12]}…"
            )
        tuner.config = dataclasses.replace(tuner.config, init_from=origin)
        identity = digest_json(run_facts(identity_in(stored)))  # as it was when it was written
        tensors = run.read_prompts(cls.method, identity, which)
        tuner.prompts.load_state_dict(tensors)
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

    def _key(self, train: ImageDataset, val: ImageDataset | None) -> str:
        facts = [run_facts(self._identity()), fingerprint(train), len(train)]
        if val is not None:  # it decides which prompts are kept, and when to stop
            facts += [fingerprint(val), len(val)]
        if self.config.init_from is not None:
            facts.append(digest(self._start_values()))
        return digest_json(facts)

    def _identity(self) -> dict[str, Any]:
        """What says which run this is."""
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

    def _open(self, run: RunFolder, key: str, resume: bool, job: Mapping[str, Any] | None) -> None:
        if not run.started:
            run.check_free("out")
            run.write_config(
                {**self._identity(), "key": key, "threads": torch.get_num_threads(), **(job or {})}
            )
        elif not resume:
            raise FileExistsError(
                f"out: {run.path} holds a run already: resume it, or choose a new folder"
            )
        elif (stored := run.read_config())["classnames"] != self.classnames:
            raise ValueError(
                f"resume: {run.path} was begun with the classes {some(stored['classnames'])}, "
                f"these are {some(self.classnames)}"
            )
        elif stored.get("key") != key:
            raise ValueError(
                f"resume: {run.path} is a run with other settings, another model or other data, or "
                "was begun by an earlier version: begin a new run"
            )
        else:
            self._adopt(stored["config"], run.path)

    def _adopt(self, stored: Mapping[str, Any], path: Path) -> None:
        """How a run that is resumed was executed: for the same bits, it goes on likewise."""
        known = {key: stored[key] for key in EXECUTION if key in stored}
        for key, value in known.items():
            if self._given[key] is not None and getattr(self.config, key) != value:
                raise ValueError(
                    f"{key}: {path} was begun with {value!r}, got {self._given[key]!r}: "
                    "leave it out"
                )
        self.config = dataclasses.replace(self.config, **typed(self.Config, known))
