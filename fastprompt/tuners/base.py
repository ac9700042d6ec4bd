"""What the methods share: settings, prompts in their towers, saving, loading, evaluation."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn

from .._checks import Fraction, check_classnames, some
from .._files import digest
from ..classifier import CLIPClassifier
from ..clip import TEMPLATES, FrozenCLIP
from ..data.loading import ImageDataset, check_dataset, check_same_classes, fingerprint
from ..evaluation import Evaluation, evaluate
from ..loading import load_clip
from ..prompted import PromptedCLIP
from ..runs import RunFolder
from ..tracking import Tracker
from .config import TunerConfig, as_dict, build, typed
from .identity import EXECUTION, clip_of, digest_of, identity_in, run_facts, runs_here
from .loop import Loop
from .start import start_values


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
    # what `fastprompt tune` takes by default
    job: ClassVar[Mapping[str, Any]] = {
        "data": "patterns",
        "shots": "all",
        "attacks": "clean,feature-pgd-40,pgd-20",
    }
    score: ClassVar[str]  # which of the validation's numbers says what prompts are the best

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
    def loss(self, batch: Any) -> Tensor:
        """The scalar loss of a batch, a mean over its examples."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Accuracies to log after an epoch, by name."""

    def batches(self, order: Tensor, epoch: int) -> Iterator[tuple[int, Any]]:
        """An epoch's batches, each with its number of examples; by default the examples' rows.

        Args:
            order: the training examples' rows in this epoch's order, int64 ``[N]``, on the CPU.
            epoch: from 0.
        """
        for rows in order.to(self.clip.device).split(self.config.batch):
            yield len(rows), rows

    def check_ready(self) -> None:  # noqa: B027  # most methods have nothing to say
        """Raise what stands in the way of tuning, before anything is written."""

    def release(self) -> None:  # noqa: B027  # likewise
        """Let go of what only tuning needs."""

    # ---- what all share --------------------------------------------------------------------

    def _start(self) -> None:
        """New prompts, in towers that run as the settings say; what they left open is filled in."""
        config = self.config
        prompts = self.build_prompts().to(self.clip.device)
        # prompts of a float64 model learn in float64
        self.prompts = prompts.double() if self.clip.dtype == torch.float64 else prompts
        if config.init_from is not None:
            self.prompts.load_state_dict(self._start_values(), strict=False)
        self.model = self._prompted(self.classnames, config.class_chunk)
        self.config = dataclasses.replace(
            config,
            precision=cast(Any, self.model.precision),
            compile=self.model.compiled,
            class_chunk=self.model.class_chunk,
        )
        self.totals: dict[str, Tensor] = {}

    def _start_values(self) -> dict[str, Tensor]:
        specific = self.classnames if getattr(self.config, "class_specific", False) else None
        origin = self.config.init_from or ""
        return start_values(origin, self.prompts, self.clip.fingerprint, specific)

    def _prompted(
        self, classnames: Sequence[str], class_chunk: int | None, **changes: Any
    ) -> PromptedCLIP:
        config = self.config
        options: dict[str, Any] = {
            "engine": config.engine,
            "precision": config.precision,
            "class_specific": getattr(config, "class_specific", False),
            "compile": config.compile,
            "class_chunk": class_chunk,
        }
        return PromptedCLIP(self.clip, classnames, self.prompts, **{**options, **changes})

    def log(self, examples: int, **terms: Tensor) -> None:
        """Note means over a batch of so many examples; ``metrics.jsonl`` gets the epoch's."""
        for name, value in terms.items():
            value = value.detach() * examples
            self.totals[name] = self.totals[name] + value if name in self.totals else value

    @property
    def classifier(self) -> CLIPClassifier:
        """The tuned classifier: pixels ``[B, 3, H, W]`` in [0, 1] to logits ``[B, C]``."""
        self.prompts.to(self.clip.device)  # the clip may have been moved since it was tuned
        return self.model.classifier()

    def classifier_for(
        self, classnames: Sequence[str] | None = None, *, precision: str | None = None
    ) -> CLIPClassifier:
        """The tuned prompts' classifier for other classes, or in another precision.

        Args:
            classnames: as for base-to-new, or of another data set; by default the tuner's.
            precision: see `CLIPClassifier`; by default that of the tuning.

        Raises:
            ValueError: a bad class list, or prompts that belong to the classes they were tuned on;
                a precision that the device lacks.
        """
        names = self.classnames if classnames is None else check_classnames(classnames)
        if getattr(self.config, "class_specific", False) and names != self.classnames:
            raise ValueError(
                "classnames: each tuned class has a context of its own, there is none for others"
            )
        self.prompts.to(self.clip.device)
        changes = {} if precision is None else {"precision": precision}
        return self._prompted(names, None, **changes).classifier()

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
            val: likewise; judged after each epoch. See ``keep`` and ``patience`` in the settings.
            out: the run folder to write; None writes nothing.
            resume: go on with the run that stopped in ``out``; on CPU it ends with the same bits
                as one that was never stopped.
            job: what else ``config.json`` should hold, such as the data's arguments.
            track: also write TensorBoard curves into ``out`` (extra ``track``).
            progress: show bars, where the output is a terminal.

        Raises:
            ValueError, TypeError: data that does not fit the model or the class list.
            FileExistsError: ``out`` holds a run and ``resume`` is not set.
            FloatingPointError: the loss is not finite; the last good state stays in ``out`` and in
                the prompts. The message says in which step, and on which images.
        """
        for name, data in (("train", train), ("val", val)):
            if data is not None:
                check_dataset(data, name, self.clip.image_size, len(self.classnames))
                check_same_classes(data, name, self.classnames)
        self.check_ready()
        if val is None and self.config.patience is not None:
            raise ValueError("patience needs val: images to judge the prompts on")
        run = None if out is None else RunFolder(out)
        if run is None and (track or resume):
            raise ValueError(f"{'track' if track else 'resume'} needs out: the run's folder")
        key = self._key(train, val)
        if run is not None:
            self._open(run, key, resume, job)
        tracker = Tracker(run.path) if run is not None and track else None
        # from the start values, whatever was tuned before: config.json must be the whole story
        self._start()
        examples = self.prepare(train, val, None if run is None else run.path, progress)
        best = Loop(self, run, key, examples, tracker, progress).run()
        if run is not None and best is not None:
            for name, tensors in (("best", best), ("last", self.prompts.state_dict())):
                run.write_prompts(tensors, self.method, self._hash(), name)
        if best is not None and self.config.keep == "best":
            self.prompts.load_state_dict(best)
        if run is not None:
            self._write_prompts(run)
        self.release()
        return self

    def _write_prompts(self, run: RunFolder) -> None:
        run.write_prompts(self.prompts.state_dict(), self.method, self._hash())

    def _hash(self) -> str:
        return digest_of(run_facts(self._identity()))

    def _key(self, train: ImageDataset, val: ImageDataset | None) -> str:
        facts = [run_facts(self._identity()), fingerprint(train), len(train)]
        if val is not None:  # it decides which prompts are kept, and when to stop
            facts += [fingerprint(val), len(val)]
        if self.config.init_from is not None:
            facts.append(digest(self._start_values()))
        return digest_of(facts)

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

        Raises:
            ValueError: as `fastprompt.evaluate`, or images of other classes.
        """
        check_same_classes(test, "test", self.classnames)
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
        elif digest_of(run_facts(identity_in(run.read_config()))) != self._hash():
            raise FileExistsError(f"folder: {run.path} holds another run")
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
        config = run.read_config()
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
        identity = digest_of(run_facts(identity_in(config)))
        tensors = run.read_prompts(cls.method, identity, which)
        tuner.prompts.load_state_dict(tensors)
        return tuner
