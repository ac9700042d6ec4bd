"""What the methods share: settings, the loop, saving, resuming, evaluation."""

import dataclasses
import math
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .._checks import Fraction, check_classnames
from ..classifier import CLIPClassifier
from ..clip import TEMPLATES, FrozenCLIP
from ..data.loading import ImageDataset, check_dataset, fingerprint
from ..evaluation import Evaluation, evaluate
from ..loading import load_clip
from ..prompted import PromptedCLIP
from ..runs import RunFolder
from ..tracking import Tracker
from . import optimisers
from .config import TunerConfig, as_dict, build, typed
from .identity import EXECUTION, clip_of, digest_of, identity_in, run_facts, runs_here


class Tuner(ABC):
    """Tunes the prompts of a frozen CLIP.

    Args:
        clip: a `FrozenCLIP`, an open_clip model (copied, left as it was), or a name for
            `load_clip`.
        classnames: C distinct names.
        config: settings: the method's dataclass, a mapping, or a YAML or JSON file.
        **overrides: single settings; they win over ``config``, which wins over the preset for a
            bundled model, which wins over the dataclass's defaults.

    Raises:
        ValueError: the method does not fit the model (the reason is given), a bad class list, an
            unknown or bad setting.
    """

    method: ClassVar[str]
    Config: ClassVar[type[TunerConfig]]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(
        self,
        clip: FrozenCLIP | nn.Module | str,
        classnames: Sequence[str],
        config: TunerConfig | Mapping[str, Any] | str | Path | None = None,
        **overrides: Any,
    ) -> None:
        self.clip = clip if isinstance(clip, FrozenCLIP) else load_clip(clip)
        if reason := self.unfit(self.clip):
            raise ValueError(f"{self.method} does not fit {self.clip.name}: {reason}")
        self.classnames = check_classnames(classnames)
        preset = self.presets.get((self.clip.source or {}).get("model", ""), {})
        self.config = build(self.Config, preset, config, overrides)
        self._given = {key: getattr(self.config, key) for key in EXECUTION}
        self._start()

    # ---- what a method defines -------------------------------------------------------------

    @classmethod
    @abstractmethod
    def unfit(cls, clip: FrozenCLIP) -> str:
        """Why the method does not fit ``clip``; empty if it does."""

    @abstractmethod
    def build_prompts(self) -> nn.Module:
        """What learns; its state dict is what is saved."""

    @abstractmethod
    def prepare(
        self, train: ImageDataset, val: ImageDataset | None, out: Path | None, progress: bool
    ) -> int:
        """Get ready to tune; the number of training examples."""

    @abstractmethod
    def loss(self, rows: Tensor) -> Tensor:
        """The scalar loss of the training examples ``rows``, int64 ``[B]``."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Accuracies to log after an epoch, by name."""

    @abstractmethod
    def learning_rate(self, epoch: int) -> float:
        """The learning rate of epoch ``epoch``, from 0."""

    @abstractmethod
    def build_optimiser(self) -> torch.optim.Optimizer:
        """An optimiser over the prompts."""

    @property
    @abstractmethod
    def classifier(self) -> CLIPClassifier:
        """The tuned classifier: pixels ``[B, 3, H, W]`` in [0, 1] to logits ``[B, C]``."""

    # ---- what all share --------------------------------------------------------------------

    def _start(self) -> None:
        """New prompts, in towers that run as the settings say; what they left open is filled in."""
        config = self.config
        self.prompts = self.build_prompts().to(self.clip.device)
        self.model = PromptedCLIP(
            self.clip,
            self.classnames,
            self.prompts,
            engine=config.engine,
            precision=config.precision,
            compile=config.compile,
            class_chunk=config.class_chunk,
        )
        self.config = dataclasses.replace(
            config,
            precision=cast(Any, self.model.precision),
            compile=self.model.compiled,
            class_chunk=self.model.class_chunk,
        )

    def fit(
        self,
        train: ImageDataset,
        val: ImageDataset | None = None,
        out: str | Path | None = None,
        *,
        resume: bool = False,
        job: Mapping[str, Any] | None = None,
        track: bool = False,
        progress: bool = True,
    ) -> Self:
        """Tune the prompts.

        Args:
            train: map-style data set of uint8 images ``[3, S, S]`` and labels.
            val: likewise; its accuracy is logged after each epoch, and changes nothing.
            out: the run folder to write; None writes nothing.
            resume: go on with the run that stopped in ``out``; on CPU it ends with the same bits
                as one that was never stopped.
            job: what else ``config.json`` should hold, such as the data's arguments.
            track: also write TensorBoard curves into ``out`` (extra ``track``).
            progress: show bars, where the output is a terminal.

        Raises:
            ValueError, TypeError: data that does not fit the model or the class list.
            FileExistsError: ``out`` holds a run and ``resume`` is not set.
            FloatingPointError: the loss is not finite; the last good state stays in ``out``.
        """
        for name, data in (("train", train), ("val", val)):
            if data is not None:
                check_dataset(data, name, self.clip.image_size, len(self.classnames))
        run = None if out is None else RunFolder(out)
        if run is None and (track or resume):
            raise ValueError(f"{'track' if track else 'resume'} needs out: the run's folder")
        key = self._key(train)
        if run is not None:
            self._open(run, key, resume, job)
        tracker = Tracker(run.path) if run is not None and track else None
        # from the start values, whatever was tuned before: config.json must be the whole story
        self._start()
        examples = self.prepare(train, val, None if run is None else run.path, progress)
        self._loop(run, key, examples, tracker, progress)
        if run is not None:
            self._write_prompts(run)
        return self

    def _write_prompts(self, run: RunFolder) -> None:
        run.write_prompts(self.prompts.state_dict(), self.method, self._hash())

    def _hash(self) -> str:
        return digest_of(run_facts(self._identity()))

    def _key(self, train: ImageDataset) -> str:
        return digest_of([run_facts(self._identity()), fingerprint(train), len(train)])

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
            # a write that was killed may have left a temporary file of ours
            own = re.compile(r"\..*\.tmp")
            if run.path.exists() and not all(own.fullmatch(p.name) for p in run.path.iterdir()):
                raise FileExistsError(f"out: {run.path} holds other files: choose a new folder")
            run.write_config(
                {**self._identity(), "key": key, "threads": torch.get_num_threads(), **(job or {})}
            )
        elif not resume:
            raise FileExistsError(
                f"out: {run.path} holds a run already: resume it, or choose a new folder"
            )
        elif (stored := run.read_config()).get("key") != key:
            raise ValueError(
                f"resume: {run.path} is a run with other settings, another model or other data"
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

    def _loop(
        self,
        run: RunFolder | None,
        key: str,
        examples: int,
        tracker: Tracker | None,
        progress: bool,
    ) -> None:
        optimiser = self.build_optimiser()
        start = 0 if run is None else self._restore(run, key, optimiser)
        batch, epochs = self.config.batch, self.config.epochs
        steps = math.ceil(examples / batch)
        bar = tqdm(
            total=epochs * steps,
            initial=start * steps,
            desc=f"tune {self.method}",
            unit="step",
            disable=None if progress else True,
        )
        with bar:
            for epoch in range(start, epochs):
                row = self._epoch(epoch, examples, optimiser, bar)
                bar.set_postfix({k: f"{row[k]:.3f}" for k in row if k in ("loss", "accuracy")})
                if tracker is not None:
                    tracker.add(row)
                if run is not None:
                    run.append_metrics(row)
                    state = optimisers.pack(self.prompts, optimiser)
                    run.write_state(state, epoch + 1, key)

    def _restore(self, run: RunFolder, key: str, optimiser: torch.optim.Optimizer) -> int:
        state = run.read_state(key)
        if state is None:
            run.cut_metrics(0)
            return 0
        optimisers.unpack(state[0], self.prompts, optimiser)
        run.cut_metrics(state[1])
        return state[1]

    def _epoch(
        self, epoch: int, examples: int, optimiser: torch.optim.Optimizer, bar: "tqdm[Any]"
    ) -> dict[str, Any]:
        began = time.perf_counter()
        # the order is a function of seed and epoch alone: a resumed run sees the same
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
        order = torch.randperm(examples, generator=generator).to(self.clip.device)
        rate = self.learning_rate(epoch)
        for group in optimiser.param_groups:
            group["lr"] = rate
        total = torch.zeros((), device=self.clip.device)
        for rows in order.split(self.config.batch):
            loss = self.loss(rows)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            total += loss.detach() * len(rows)
            bar.update()
        mean = float(total) / examples
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"the loss became {mean} in epoch {epoch + 1}: lower lr; the state after epoch "
                f"{epoch} is kept"
            )
        seconds = round(time.perf_counter() - began, 3)
        return {"epoch": epoch + 1, "loss": mean, "lr": rate, **self.validate(), "seconds": seconds}

    def evaluate(
        self,
        test: ImageDataset,
        attacks: Sequence[str] = ("clean", "pgd-20"),
        eps: Fraction | Sequence[Fraction] = "4/255",
        *,
        templates: Sequence[str] = TEMPLATES,
        **options: Any,
    ) -> Evaluation:
        """Accuracies of the zero-shot classifier and of the tuned one, side by side.

        Args:
            test: data set as in `fit`.
            attacks: names such as ``"clean"``, ``"pgd-20"``, ``"feature-pgd-40"``.
            eps: one radius or several.
            templates: of the zero-shot classifier.
            **options: see `fastprompt.evaluate`.
        """
        models = {
            "zero-shot": self.clip.zero_shot(
                self.classnames,
                templates,
                engine=self.config.engine,
                precision=self.config.precision,
            ),
            "tuned": self.classifier,
        }
        return evaluate(models, test, attacks=attacks, eps=eps, **options)

    def save(self, folder: str | Path) -> Path:
        """Write ``config.json`` and ``prompts.safetensors`` into ``folder``.

        Raises:
            FileExistsError: ``folder`` holds another run.
        """
        run = RunFolder(folder)
        if not run.started:
            run.write_config(self._identity())
        elif digest_of(run_facts(identity_in(run.read_config()))) != self._hash():
            raise FileExistsError(f"folder: {run.path} holds another run")
        self._write_prompts(run)
        return run.path

    @classmethod
    def load(cls, folder: str | Path, clip: FrozenCLIP | nn.Module | str | None = None) -> Self:
        """The tuner that `save` or a finished run left in ``folder``.

        Args:
            clip: the model; by default it is loaded again from what ``config.json`` says.

        Raises:
            FileNotFoundError: no run folder, or tuning has not finished.
            ValueError: damaged or foreign files, another method, or another model's weights.
        """
        run = RunFolder(folder)
        config = run.read_config()
        if config["method"] != cls.method:
            raise ValueError(f"{run.path} is a run of {config['method']!r}, not of {cls.method!r}")
        if clip is None:
            clip = clip_of(config)
        clip = clip if isinstance(clip, FrozenCLIP) else load_clip(clip)
        # how it was executed was for another machine, perhaps: this one's defaults are taken
        settings = {k: v for k, v in config["config"].items() if k not in EXECUTION}
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
        tensors = run.read_prompts(cls.method, digest_of(run_facts(identity_in(config))))
        tuner.prompts.load_state_dict(tensors)
        return tuner
